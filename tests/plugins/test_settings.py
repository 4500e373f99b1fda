import logging
from dataclasses import fields

import pytest

from orchard import settings as settings_module
from orchard.settings import BadSettings, Settings, Threshold
from tests.plugins.dataset_uris import ACCEPTED, REFUSED

REQUIRED = {"ORCHARD_BUCKET": "fruits-data", "ORCHARD_RELEASE": "0123456789ab"}


def error_message(**variables: str) -> str:
    with pytest.raises(BadSettings) as error:
        Settings.from_env({**REQUIRED, **variables})
    return str(error.value)


def test_bucket_and_release_are_the_only_required_settings() -> None:
    settings = Settings.from_env({**REQUIRED, "HOME": "/root", "AWS_REGION": "us-east-1"})
    assert settings == Settings(bucket="fruits-data", release="0123456789ab")
    assert (settings.region, settings.release_label) == ("eu-west-1", "emr-7.14.0")
    assert settings.release_uri == "s3://fruits-data/releases/0123456789ab"
    assert settings.dataset_uri == "s3://fruits-data/images/"
    assert settings.warehouse_uri == "s3://fruits-data/warehouse"


def test_lists_numbers_and_text_are_read() -> None:
    settings = Settings.from_env(
        {**REQUIRED, "ORCHARD_SUBNET_IDS": "subnet-a, subnet-b,", "ORCHARD_POLL_SECONDS": "5", "ORCHARD_OWNER": "pears"}
    )
    assert settings.subnet_ids == ("subnet-a", "subnet-b")
    assert settings.poll_seconds == 5
    assert settings.owner == "pears"


def test_thresholds_are_numbers_or_off_and_only_those_that_warn_are_on_by_default() -> None:
    thresholds = {
        "ORCHARD_WARN_DRIFT": "3",
        "ORCHARD_STOP_LABEL_ACCURACY": "0.9",
        "ORCHARD_STOP_LABEL_LOSS": "1e-3",
        "ORCHARD_STOP_EXPLAINED_VARIANCE": "0",
        "ORCHARD_WARN_REJECT_RATIO": "Off",
    }
    read = Settings.from_env({**REQUIRED, **thresholds})
    assert (read.warn_drift, read.stop_label_accuracy, read.stop_label_loss) == (3, 0.9, 0.001)
    assert (read.stop_explained_variance, read.warn_reject_ratio) == (0, None)
    default = Settings.from_env(REQUIRED)
    of_all = {field.name: getattr(default, field.name) for field in fields(Settings) if field.type == Threshold}
    assert len(of_all) == 10
    assert {name.partition("_")[0] for name, value in of_all.items() if value is not None} == {"warn"}
    # What a run may cost depends on the dataset.
    assert {name for name, value in of_all.items() if value is None and name.startswith("warn_")} == {"warn_cost_usd"}
    assert Settings.from_env({**REQUIRED, "ORCHARD_WARN_COST_USD": "2.5"}).warn_cost_usd == 2.5


def test_by_default_four_clusters_may_run_for_at_most_twelve_hours() -> None:
    settings = Settings.from_env(REQUIRED)
    assert (settings.max_running_clusters, settings.max_cluster_hours) == (4, 12)
    assert Settings.from_env({**REQUIRED, "ORCHARD_MAX_RUNNING_CLUSTERS": "9"}).max_running_clusters == 9


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_a_switch_is_true_or_false(value: str, expected: bool) -> None:
    assert Settings.from_env(REQUIRED).maintenance_dry_run is True
    assert Settings.from_env({**REQUIRED, "ORCHARD_MAINTENANCE_DRY_RUN": value}).maintenance_dry_run is expected


PRIMARY, CORE, SERVICE = (f"sg-0123456789abcdef{number}" for number in range(3))


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"ORCHARD_PRIMARY_SECURITY_GROUP": PRIMARY, "ORCHARD_CORE_SECURITY_GROUP": CORE},
        {"ORCHARD_PRIMARY_SECURITY_GROUP": "sg-01234567", "ORCHARD_CORE_SECURITY_GROUP": "sg-01234567"},
        {
            "ORCHARD_PRIMARY_SECURITY_GROUP": PRIMARY,
            "ORCHARD_CORE_SECURITY_GROUP": CORE,
            "ORCHARD_SERVICE_SECURITY_GROUP": SERVICE,
        },
    ],
)
def test_a_cluster_may_have_no_security_groups_of_its_own_or_those_of_all_nodes(groups: dict[str, str]) -> None:
    read = Settings.from_env({**REQUIRED, **groups})
    for name, group in groups.items():
        assert getattr(read, name.removeprefix("ORCHARD_").lower()) == group


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (("PRIMARY",), "ORCHARD_CORE_SECURITY_GROUP is not set"),
        (("CORE",), "ORCHARD_PRIMARY_SECURITY_GROUP is not set"),
        (("PRIMARY", "SERVICE"), "ORCHARD_CORE_SECURITY_GROUP is not set"),
        (("CORE", "SERVICE"), "ORCHARD_PRIMARY_SECURITY_GROUP is not set"),
        (("SERVICE",), "ORCHARD_PRIMARY_SECURITY_GROUP and ORCHARD_CORE_SECURITY_GROUP are not set"),
    ],
)
def test_an_incomplete_set_of_security_groups_is_named_with_what_is_missing(
    given: tuple[str, ...], missing: str
) -> None:
    message = error_message(**{f"ORCHARD_{name}_SECURITY_GROUP": PRIMARY for name in given})
    for name in given:
        assert f"ORCHARD_{name}_SECURITY_GROUP is '{PRIMARY}'" in message
    assert f"but {missing}: set the groups of the primary and of the core nodes, or no group" in message


def test_each_missing_setting_is_named() -> None:
    with pytest.raises(BadSettings, match="ORCHARD_BUCKET is not set; ORCHARD_RELEASE is not set"):
        Settings.from_env({})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ORCHARD_REGIO", "did you mean ORCHARD_REGION?"),
        ("ORCHARD_SUBNETS", "did you mean ORCHARD_SUBNET_IDS?"),
        ("ORCHARD_DATASET_PREFX", "did you mean ORCHARD_DATASET_PREFIX?"),
        ("ORCHARD_WEBSERVER_PORT_8080_TCP", "no setting has a similar name"),
        ("ORCHARD_region", "did you mean ORCHARD_REGION?"),
    ],
)
def test_a_variable_that_is_not_a_setting_is_a_warning_with_the_nearest_name_once_per_process(
    name: str, nearest: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "_warned", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert Settings.from_env({**REQUIRED, name: "eu-west-3"}) == Settings.from_env(REQUIRED)
    assert caplog.messages == [f"{name} is ignored, because it is not a setting: {nearest}"]


def test_the_variables_that_kubernetes_adds_for_its_services_change_nothing() -> None:
    variables = {
        f"ORCHARD{service}_{name}": "tcp://10.0.0.1:8080"
        for service in ("", "_API_SERVER", "_WEBSERVER", "_BUCKET", "_RELEASE", "_POLL_SECONDS")
        for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP", "PORT_8080_TCP_ADDR")
    }
    assert Settings.from_env({**REQUIRED, **variables}) == Settings.from_env(REQUIRED)


def test_a_missing_setting_is_an_error_although_a_similar_variable_is_set() -> None:
    with pytest.raises(BadSettings, match="ORCHARD_BUCKET is not set"):
        Settings.from_env({"ORCHARD_BUCKT": "fruits-data", "ORCHARD_RELEASE": "1"})


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("ORCHARD_BUCKET", "s3://fruits-data", "without s3://"),
        ("ORCHARD_RELEASE", "a/b", "make release"),
        ("ORCHARD_RELEASE_LABEL", "7.14.0", "such as emr-7.14.0"),
        ("ORCHARD_RELEASE_LABEL", "emr-6.15.0", "emr-7.1.0 or later"),
        ("ORCHARD_REGION", "Ireland", "such as eu-west-1"),
        ("ORCHARD_POLL_SECONDS", "86400", "a value below the shortest timeout"),
        ("ORCHARD_DEPLOYMENT", "My Team", "at most 32 of a-z, 0-9 and -"),
        ("ORCHARD_DEPLOYMENT", "x" * 33, "at most 32 of a-z, 0-9 and -"),
        ("ORCHARD_DATASET_PREFIX", "images", "a prefix such as images/"),
        ("ORCHARD_LOG_PREFIX", "/logs/", "a prefix such as images/"),
        ("ORCHARD_CATALOG_DATABASE", "my-lake", "only a-z, 0-9 and _"),
        ("ORCHARD_POLL_SECONDS", "soon", "a whole number"),
        ("ORCHARD_POLL_SECONDS", "0", "a positive number"),
        ("ORCHARD_PCA_TIMEOUT_MINUTES", "-1", "a positive number"),
        ("ORCHARD_IDLE_TIMEOUT_MINUTES", "10081", "at most 7 days"),
        ("ORCHARD_MAX_RUNNING_CLUSTERS", "0", "a positive number"),
        ("ORCHARD_KEEP_SCRATCH_DAYS", "-1", "use 0 or a positive number"),
        ("ORCHARD_KEPT_RUNS", "0", "a positive number"),
        ("ORCHARD_KEPT_RUNS", "all", "a whole number"),
        ("ORCHARD_MAINTENANCE_DRY_RUN", "no", "use true or false"),
        ("ORCHARD_MAINTENANCE_DRY_RUN", "0", "use true or false"),
        ("ORCHARD_MAX_CLUSTER_HOURS", "half a day", "a whole number"),
        ("ORCHARD_WARN_DRIFT", "-0.1", "use 0 or a positive number, or off"),
        ("ORCHARD_STOP_DRIFT", "inf", "use 0 or a positive number, or off"),
        ("ORCHARD_STOP_DRIFT", "", "use 0 or a positive number, or off"),
        ("ORCHARD_WARN_LABEL_ACCURACY", "nan", "use a number from 0 to 1, or off"),
        ("ORCHARD_STOP_LABEL_ACCURACY", "0,5", "use a number from 0 to 1, or off"),
        ("ORCHARD_STOP_LABEL_ACCURACY", "50%", "use a number from 0 to 1, or off"),
        ("ORCHARD_WARN_EXPLAINED_VARIANCE", "95", "use a number from 0 to 1, or off"),
        ("ORCHARD_STOP_EXPLAINED_VARIANCE", "none", "use a number from 0 to 1, or off"),
        ("ORCHARD_WARN_LABEL_LOSS", "-1", "use a number from 0 to 1, or off"),
        ("ORCHARD_STOP_LABEL_LOSS", "1.5", "use a number from 0 to 1, or off"),
        ("ORCHARD_WARN_COST_USD", "-1", "use 0 or a positive number, or off"),
        ("ORCHARD_WARN_COST_USD", "$2", "use 0 or a positive number, or off"),
        ("ORCHARD_DATASETS", "apples/,pears", "use 's3://fruits-data/pears/'"),
        ("ORCHARD_DATASETS", "s3://Fruits/pears/", "use 3 to 63 of a-z, 0-9, . and -"),
        ("ORCHARD_ALERT_EMAIL", "a@example.com, team", "such as team@example.com, separated by commas"),
        ("ORCHARD_ALERT_EMAIL", "Team <a@example.com>", "such as team@example.com, separated by commas"),
        ("ORCHARD_PRIMARY_SECURITY_GROUP", "default", "the id of a security group, such as sg-"),
        ("ORCHARD_CORE_SECURITY_GROUP", "sg-12345", "the id of a security group, such as sg-"),
        ("ORCHARD_SERVICE_SECURITY_GROUP", "sg-0123456789ABCDEF0", "the id of a security group, such as sg-"),
        ("ORCHARD_MAX_CLUSTER_HOURS", "9", "the timeouts allow a cluster to run for 10 hours"),
    ],
)
def test_an_invalid_value_is_reported_with_its_remedy(name: str, value: str, remedy: str) -> None:
    message = error_message(**{name: value})
    assert name in message
    assert value.rpartition(",")[2].strip() in message
    assert remedy in message


def test_the_trigger_form_suggests_the_nightly_dataset_and_those_of_the_setting() -> None:
    assert Settings.from_env(REQUIRED).dataset_uris == ("s3://fruits-data/images/",)
    read = Settings.from_env({**REQUIRED, "ORCHARD_DATASETS": "apples/, s3://other/pears 2026/,images/,apples/"})
    assert read.dataset_uris == ("s3://fruits-data/images/", "s3://fruits-data/apples/", "s3://other/pears 2026/")


def test_the_channels_of_alerts_are_off_by_default() -> None:
    default = Settings.from_env(REQUIRED)
    assert (default.alert_topic_arn, default.alert_email, default.alert_webhook_url) == ("", (), "")
    read = Settings.from_env({**REQUIRED, "ORCHARD_ALERT_EMAIL": "a@example.com, b@example.com"})
    assert read.alert_email == ("a@example.com", "b@example.com")
    url = "https://hooks.example.com:8443/T0/secret?key=secret"
    assert Settings.from_env({**REQUIRED, "ORCHARD_ALERT_WEBHOOK_URL": url}).alert_webhook_url == url


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example.com/s3cret",
        "ftp://a.b/s3cret",
        "file:///s3cret",
        "https:///s3cret",
        "https://a:s3cret/",
        "https://[s3cret/",
    ],
)
def test_a_url_of_a_webhook_that_cannot_be_used_is_an_error_without_the_url_which_is_a_secret(url: str) -> None:
    message = error_message(ORCHARD_ALERT_WEBHOOK_URL=url)
    assert message == "ORCHARD_ALERT_WEBHOOK_URL is not a URL that starts with https:// or http://"


def test_all_faults_are_reported_together() -> None:
    message = error_message(ORCHARD_BUCKET="A", ORCHARD_LOG_PREFIX="logs")
    assert "ORCHARD_BUCKET" in message
    assert "ORCHARD_LOG_PREFIX" in message


@pytest.mark.parametrize("prefix", ACCEPTED, ids=ascii)
def test_the_nightly_dataset_may_be_whatever_the_form_accepts(prefix: str) -> None:
    settings = Settings.from_env({**REQUIRED, "ORCHARD_DATASET_PREFIX": prefix})
    assert settings.dataset_uri == f"s3://fruits-data/{prefix}"


@pytest.mark.parametrize("prefix", [*REFUSED, ""], ids=ascii)
def test_the_nightly_dataset_may_not_be_what_the_form_refuses(prefix: str) -> None:
    message = error_message(ORCHARD_DATASET_PREFIX=prefix)
    assert message.startswith(f"ORCHARD_DATASET_PREFIX is {prefix!r}: ")
    assert "use" in message or "rename" in message


@pytest.mark.parametrize("bucket", ["10.0.0.1", "fruits..data", "ab", "fruits-", "Fruits"])
def test_the_name_of_the_bucket_follows_the_same_rules(bucket: str) -> None:
    assert f"ORCHARD_BUCKET is {bucket!r}" in error_message(ORCHARD_BUCKET=bucket)


def test_the_default_deployment_depends_on_the_bucket_and_on_the_airflow() -> None:
    def deployment(bucket: str, airflow: str) -> str:
        return Settings.from_env({**REQUIRED, "ORCHARD_BUCKET": bucket}, airflow).deployment

    found = [
        deployment(bucket, airflow)
        for bucket in ("fruits-data", "fruits-test")
        for airflow in ("", "https://airflow-1.example.com", "https://airflow-2.example.com")
    ]
    assert len(set(found)) == 6
    assert found[1] == deployment("fruits-data", "https://airflow-1.example.com")
    assert Settings.from_env({**REQUIRED, "ORCHARD_DEPLOYMENT": "prod"}, "https://a.example.com").deployment == "prod"
