"""The params as Airflow's API server checks them: from its database, without Orchard's code."""

import json
import re
from typing import Any

import pytest
from airflow.exceptions import ParamValidationError
from airflow.sdk import DAG
from airflow.serialization.definitions.param import SerializedParamsDict
from airflow.serialization.serialized_objects import DagSerialization

from orchard.airflow.trigger_form import OPEN_SECTION, run_params
from orchard.cluster.instances import INSTANCE_TYPES
from orchard.run.params import PARAMS, PCA_MODES
from orchard.settings import Settings

SETTINGS = Settings(bucket="fruits-data", release="1", datasets=("apples/", "s3://other/pears/"))


@pytest.fixture(scope="module")
def stored() -> SerializedParamsDict:
    dag = DAG("fruit_features", schedule=None, params=run_params(SETTINGS))
    # Airflow may sort the keys.
    text = json.dumps(DagSerialization.to_dict(dag), sort_keys=True)
    params: SerializedParamsDict = DagSerialization.from_dict(json.loads(text)).params
    return params


def schema_of(stored: SerializedParamsDict, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = stored.get_param(name).schema
    return schema


def refusal(stored: SerializedParamsDict, name: str, value: Any) -> str:
    """Return the message of HTTP 400, with which the API refuses a value."""
    with pytest.raises(ParamValidationError) as error:
        stored.deep_merge({name: value}).validate()
    return str(error.value)


def test_the_defaults_are_accepted(stored: SerializedParamsDict) -> None:
    assert tuple(stored.validate()) == PARAMS


def test_the_params_that_people_change_are_in_the_section_that_is_open(stored: SerializedParamsDict) -> None:
    sections: dict[str, list[str]] = {}
    for name in PARAMS:
        sections.setdefault(schema_of(stored, name)["section"], []).append(name)
    assert next(iter(sections)) == OPEN_SECTION == "Run Parameters"
    assert sections[OPEN_SECTION] == ["dataset_uri", "n_components", "pca_mode"]
    assert sorted(len(names) for names in sections.values()) == [2, 3, 4, 5]


def test_the_form_suggests_datasets_and_accepts_others(stored: SerializedParamsDict) -> None:
    schema = schema_of(stored, "dataset_uri")
    assert schema["examples"] == ["s3://fruits-data/images/", "s3://fruits-data/apples/", "s3://other/pears/"]
    assert "enum" not in schema
    stored.deep_merge({"dataset_uri": "s3://another/cherries/"}).validate()


def test_every_choice_has_words(stored: SerializedParamsDict) -> None:
    types = schema_of(stored, "instance_type")
    assert set(types["values_display"]) == set(types["enum"]) == set(INSTANCE_TYPES)
    assert types["values_display"]["m7g.2xlarge"] == "m7g.2xlarge (8 vCPU, 32 GiB, aarch64)"
    modes = schema_of(stored, "pca_mode")
    assert set(modes["values_display"]) == set(modes["enum"]) == set(PCA_MODES)


@pytest.mark.parametrize(
    ("name", "value", "why", "remedy"),
    [
        ("dataset_uri", "fruits", "'fruits' does not match '^s3://'", "Begin with s3://, as in s3://bucket/images/"),
        ("dataset_uri", "s3://fruits/a", "'s3://fruits/a' does not match '/$'", "End in /, as in s3://bucket/images/"),
        ("dataset_uri", "s3://Fruits/a/", "'s3://Fruits/a/' does not match", "3 to 63 of a-z, 0-9, . and -"),
        ("dataset_uri", "s3://fruits/a//", "'s3://fruits/a//' does not match", "Leave out the empty part, . or .."),
        ("dataset_uri", "s3://fruits/./a/", "'s3://fruits/./a/' does not match", "Leave out the empty part, . or .."),
        ("dataset_uri", "s3://10.0.0.1/a/", "'s3://10.0.0.1/a/' does not match", "Use the URI of a folder, such as"),
        ("dataset_uri", 3, "3 is not of type 'string'", "Use the URI of a folder, such as s3://bucket/images/"),
        ("n_components", 1.5, "1.5 is not a multiple of 1", "Use a whole number, or a number below 1"),
        ("n_components", 0, "0 is less than or equal to the minimum of 0", "or a share of the variance above 0"),
        (
            "n_components",
            1281,
            "1281 is greater than the maximum of 1280",
            "Use a whole number of components from 1 to",
        ),
        ("n_components", "all", "'all' is not of type 'number'", "Use a whole number of components from 1 to 1280"),
        ("pca_mode", "thaw", "'thaw' is not one of ['refit', 'frozen']", "Choose refit or frozen"),
        ("max_reject_ratio", 5, "5 is greater than the maximum of 1", "Use a number from 0 to 1"),
        ("max_lost_ratio", "0,5", "'0,5' is not of type 'number'", "Use a number from 0 to 1"),
        ("max_bytes", "64 MiB", "'64 MiB' is not of type 'integer'", "such as 67108864 for 64 MiB"),
        ("max_pixels", 0, "0 is less than the minimum of 1", "Use a whole number of pixels from 1"),
        ("retry_rejects", "yes", "'yes' is not of type 'boolean'", "Use true or false"),
        ("full_refresh", 1, "1 is not of type 'boolean'", "Use true or false"),
        ("instance_type", "m5.huge", "'m5.huge' is not one of ['m5.xlarge', ", "Choose one of the types"),
        ("core_instances", 2.5, "2.5 is not of type 'null', 'integer'", "Use a whole number from 1 to 20, or null"),
        ("core_instances", 21, "21 is greater than the maximum of 20", "Use a whole number from 1 to 20, or null"),
        ("target_minutes", None, "None is not of type 'number'", "Use a number of minutes above 0"),
        ("max_cost_usd", 0, "0 is less than or equal to the minimum of 0", "Use a number of USD above 0, or null"),
    ],
)
def test_a_wrong_value_is_refused_with_the_param_the_value_and_the_remedy(
    stored: SerializedParamsDict, name: str, value: Any, why: str, remedy: str
) -> None:
    message = refusal(stored, name, value)
    assert message.startswith(f"Invalid input for param {name}: {why}")
    # The message breaks long texts into several.
    assert remedy in re.sub(r"'\n +'", "", message)


def test_every_param_has_a_remedy(stored: SerializedParamsDict) -> None:
    for name in PARAMS:
        assert schema_of(stored, name)["help"].startswith(("Use ", "Choose ")), name
