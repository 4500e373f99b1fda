import math
from decimal import Decimal
from typing import Any

import pytest

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.errors import PermanentError
from orchard.run.params import BadParams, RunParams, UnknownParams
from tests.plugins.dataset_uris import ACCEPTED_URIS, REFUSED_URIS
from tests.plugins.plans import DEFAULT_PARAMS

VALID: dict[str, Any] = {"dataset_uri": "s3://fruits-data/images/", **DEFAULT_PARAMS}


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("core_instances", 2.0, 2),
        ("core_instances", 20, 20),
        ("core_instances", None, None),
        ("target_minutes", 20, 20.0),
        ("target_minutes", 0.5, 0.5),
        ("max_cost_usd", None, None),
        ("max_cost_usd", 2, 2.0),
        ("n_components", 50.0, 50),
        ("n_components", 1.0, 1),
        ("n_components", 1280, 1280),
        ("n_components", 0.9999999999, 0.9999999999),
        ("n_components", 1e-9, 1e-9),
        ("max_reject_ratio", 0, 0.0),
        ("max_reject_ratio", 1, 1.0),
        ("max_lost_ratio", 1, 1.0),
        ("max_bytes", 1, 1),
        ("max_bytes", 67_108_864.0, 67_108_864),
        ("max_pixels", 1.0, 1),
        ("max_pixels", 80_000_000, 80_000_000),
        *(("pca_mode", name, name) for name in ("refit", "frozen")),
        *((name, value, value) for name in ("retry_rejects", "full_refresh") for value in (True, False)),
        *(("instance_type", name, name) for name in INSTANCE_TYPES),
        *(("dataset_uri", uri, uri) for uri in ACCEPTED_URIS),
    ],
)
def test_a_valid_value_has_the_type_that_it_is_used_as(name: str, value: Any, parsed: Any) -> None:
    found = getattr(RunParams.parse({**VALID, name: value}), name)
    assert (found, type(found)) == (parsed, type(parsed))


NO_NUMBERS = (None, True, False, "2", "two", "", [2], {"value": 2}, Decimal(2), math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        *(("core_instances", value, "use a whole number from 1 to 20") for value in (*NO_NUMBERS[1:], 0, 21, -1, 2.5)),
        *(("target_minutes", value, "use a number above 0") for value in (*NO_NUMBERS, 0, -1)),
        *(("max_cost_usd", value, "use a number above 0") for value in (*NO_NUMBERS[1:], 0, -1)),
        *(("core_instances", value, "use a whole number from 1 to 20") for value in (1e300, 10**400)),
        *(
            (name, value, "use a number from 0 to 1")
            for name in ("max_reject_ratio", "max_lost_ratio")
            for value in (*NO_NUMBERS, -0.01, 1.01, 10**400)
        ),
        *(
            (name, value, "use a whole number from 1")
            for name in ("max_bytes", "max_pixels")
            for value in (*NO_NUMBERS, "64 MiB", 0, 0.5, -1, 2.5)
        ),
        *(("max_bytes", value, "use a whole number from 1 to 1073741824") for value in (2**30 + 1, 1e300, 10**400)),
        *(
            ("n_components", value, "use a whole number of components from 1 to 1280, or a share of the variance")
            for value in (*NO_NUMBERS, 0, -0.5, 1.5, 1281, 1e300, 10**400)
        ),
        *(("pca_mode", value, "choose from refit, frozen") for value in (None, True, "", "Refit", "thaw", ["refit"])),
        *(
            (name, value, "use true or false")
            for name in ("retry_rejects", "full_refresh")
            for value in (None, 0, 1, 1.0, "true", "", [True])
        ),
        *(
            ("instance_type", value, "choose from m5.xlarge, ")
            for value in (None, 5, True, "m5.huge", "", ["m5.xlarge"])
        ),
        *(("dataset_uri", uri, "use|rename") for uri in (*REFUSED_URIS, None, 3)),
    ],
)
def test_any_other_value_is_refused_with_the_param_the_value_and_the_remedy(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(BadParams, match=remedy) as error:
        RunParams.parse({**VALID, name: value})
    assert str(error.value).startswith(f"{name} is {value!r}: ")
    assert isinstance(error.value, PermanentError)


@pytest.mark.parametrize(
    ("limits", "smallest", "largest"),
    [
        ({}, True, True),
        ({"max_bytes": 128 * 1024**2}, False, True),
        ({"max_bytes": 1024**3}, False, False),
        ({"max_bytes": 1024**3, "max_pixels": 1}, False, False),
        ({"max_pixels": 100_000_000}, False, True),
        ({"max_pixels": 200_000_000, "max_bytes": 200 * 1024**2}, False, True),
        ({"max_pixels": 10**400}, False, False),
    ],
)
def test_images_that_do_not_fit_into_the_memory_of_a_worker_are_refused(
    limits: dict[str, int], smallest: bool, largest: bool
) -> None:
    for instance_type, fits in (("c6i.xlarge", smallest), ("m5.xlarge", largest)):
        params = {**VALID, **limits, "instance_type": instance_type}
        if fits:
            assert RunParams.parse(params).instance_type == instance_type
            continue
        with pytest.raises(BadParams, match=r"MiB of a worker's memory, and .* Use smaller values, or an") as error:
            RunParams.parse(params)
        assert f"max_bytes is {params['max_bytes']} and max_pixels is {params['max_pixels']}: " in str(error.value)
        assert f"and {instance_type} has " in str(error.value)


def test_all_faults_are_reported_together() -> None:
    params = {**VALID, "core_instances": "two", "n_components": True}
    del params["max_reject_ratio"]
    with pytest.raises(BadParams) as error:
        RunParams.parse(params)
    for fault in ("core_instances is 'two'", "n_components is True", "max_reject_ratio is missing"):
        assert fault in str(error.value)


def test_unknown_params_are_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(UnknownParams, match="unknown params 'workers': use dataset_uri, n_components,"):
        RunParams.parse({**VALID, "workers": 3})


def test_a_misspelt_param_is_named_with_the_nearest_one() -> None:
    message = r"unknown params 'core_instance' \(did you mean core_instances\?\), 'x': use dataset_uri, "
    with pytest.raises(UnknownParams, match=message):
        RunParams.parse({**VALID, "x": 1, "core_instance": 3})
