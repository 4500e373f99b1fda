import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.prices import FILE, MAX_AGE_DAYS, BadPrices, Prices, read_prices


def write(folder: Path, **changes: Any) -> Path:
    """Write the file of prices with other values, and return it."""
    file = folder / "prices.json"
    file.write_text(json.dumps({**json.loads(FILE.read_text()), **changes}))
    return file


def test_every_instance_type_has_its_prices() -> None:
    prices = read_prices()
    assert prices.region == "eu-west-1"
    assert prices.by_type.keys() == INSTANCE_TYPES.keys()
    for price in prices.by_type.values():
        low, high = price.spot
        assert price.emr < low <= high < price.on_demand


def test_the_price_of_a_type_grows_with_its_size() -> None:
    by_type = read_prices().by_type
    for name, kind in INSTANCE_TYPES.items():
        smallest = f"{name.split('.')[0]}.xlarge"
        assert by_type[name].on_demand == pytest.approx(by_type[smallest].on_demand * kind.vcpus / 4, rel=0.001)


def test_prices_of_another_region_and_old_ones_are_reported(prices: Prices) -> None:
    assert prices.faults("eu-west-1", prices.read_on + timedelta(days=MAX_AGE_DAYS)) == []
    late = prices.read_on + timedelta(days=MAX_AGE_DAYS + 1)
    assert prices.faults("us-east-1", late) == [
        "the prices are of eu-west-1, not of us-east-1",
        f"the prices are 181 days old, of {prices.read_on}",
    ]


@pytest.fixture
def prices() -> Prices:
    return Prices("eu-west-1", date(2026, 11, 26), "a test", {})


WITHOUT_ONE = {name: price for name, price in json.loads(FILE.read_text())["usd_per_hour"].items() if name[1] == "5"}
WRONG = {**json.loads(FILE.read_text())["usd_per_hour"]}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"usd_per_hour": WITHOUT_ONE}, "has no m6i.xlarge"),
        ({"usd_per_hour": {}}, "has no m5.xlarge"),
        ({"usd_per_hour": {**WRONG, "m5.xlarge": {"ec2": 1, "emr": 1}}}, "has no spot"),
        ({"usd_per_hour": {**WRONG, "m5.xlarge": {"ec2": -1, "emr": 1, "spot": [1, 1]}}}, "are not prices in USD"),
        ({"usd_per_hour": {**WRONG, "m5.xlarge": {"ec2": "much", "emr": 1, "spot": [1, 1]}}}, "could not convert"),
        ({"usd_per_hour": {**WRONG, "m5.xlarge": {"ec2": 1, "emr": 1, "spot": [2, 1]}}}, "are not prices in USD"),
        ({"usd_per_hour": {**WRONG, "m5.xlarge": {"ec2": float("nan"), "emr": 1, "spot": [1, 2]}}}, "are not prices"),
        ({"usd_per_hour": [1]}, "list indices"),
        ({"date": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
    ],
)
def test_a_file_with_a_fault_is_refused_with_its_name_and_the_remedy(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(BadPrices, match=rf"{file}: .*{fault}.*make prices"):
        read_prices(file)


def test_a_missing_file_and_one_that_is_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPrices, match="cannot be read"):
        read_prices(tmp_path / "missing.json")
    (tmp_path / "half.json").write_text('{"region": ')
    with pytest.raises(BadPrices, match=r"half\.json: Expecting value"):
        read_prices(tmp_path / "half.json")
