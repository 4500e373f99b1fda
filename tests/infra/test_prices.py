"""The prices are read from answers in the format that AWS documents. They were not recorded from an account:
https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-price-list-query-api.html
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from infra import prices
from infra.prices import NoPrice
from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.prices import read_prices

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
EMR = {"softwareType": "EMR"}


def product(*usd_per_hour: str, unit: str = "Hrs", term: str = "OnDemand") -> str:
    """Return a product of the price list, with the attributes that the reader does not need left out."""
    dimensions = {
        f"SKU.TERM.{number}": {"unit": unit, "description": "per hour", "pricePerUnit": {"USD": usd}}
        for number, usd in enumerate(usd_per_hour)
    }
    return json.dumps(
        {
            "product": {"productFamily": "Compute Instance", "attributes": {"vcpu": "4"}, "sku": "SKU"},
            "serviceCode": "AmazonEC2",
            "terms": {term: {"SKU.TERM": {"priceDimensions": dimensions, "sku": "SKU", "termAttributes": {}}}},
            "version": "20261120000000",
            "publicationDate": "2026-11-20T00:00:00Z",
        }
    )


@pytest.fixture
def pricing() -> Iterator[tuple[Any, Stubber]]:
    client = boto3.client("pricing", region_name="us-east-1")
    with Stubber(client) as stubber:
        yield client, stubber


def test_the_price_is_that_of_the_only_product_per_hour(pricing: tuple[Any, Stubber]) -> None:
    client, answers = pricing
    filters = [
        {"Type": "TERM_MATCH", "Field": "instanceType", "Value": "m5.xlarge"},
        {"Type": "TERM_MATCH", "Field": "regionCode", "Value": "eu-west-1"},
    ]
    pages = [product("0.2140000000"), product("0.9", term="Reserved"), product("0.1", unit="Quantity")]
    answers.add_response(
        "get_products",
        {"PriceList": pages[:1], "NextToken": "more"},
        {"ServiceCode": "AmazonEC2", "Filters": filters},
    )
    answers.add_response(
        "get_products",
        {"PriceList": pages[1:]},
        {"ServiceCode": "AmazonEC2", "Filters": filters, "NextToken": "more"},
    )
    attributes = {"instanceType": "m5.xlarge", "regionCode": "eu-west-1"}
    assert prices.on_demand_usd(client, "AmazonEC2", attributes) == 0.214
    answers.assert_no_pending_responses()


@pytest.mark.parametrize(("found", "count"), [([], 0), ([product("0.2"), product("0.3")], 2)])
def test_no_price_and_several_are_refused_with_the_type(
    pricing: tuple[Any, Stubber], found: list[str], count: int
) -> None:
    client, answers = pricing
    answers.add_response("get_products", {"PriceList": found})
    with pytest.raises(NoPrice, match=rf"AmazonEC2 has {count} hourly prices for .*m5\.xlarge"):
        prices.on_demand_usd(client, "AmazonEC2", {"instanceType": "m5.xlarge"})


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_every_type_is_asked_for_with_the_attributes_that_the_price_list_has_for_it(
    pricing: tuple[Any, Stubber], name: str
) -> None:
    # The attributes of a Graviton type have the same values as those of an Intel type. Only its processor has another
    # name, by which the reader does not filter.
    asked = {"instanceType": name, "regionCode": "eu-west-1"}
    ec2_product = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}
    client, answers = pricing
    ec2 = boto3.client("ec2", region_name="eu-west-1")
    with Stubber(ec2) as spot:
        for service, attributes in (("AmazonEC2", asked | ec2_product), ("ElasticMapReduce", asked | EMR)):
            filters = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in attributes.items()]
            answers.add_response(
                "get_products", {"PriceList": [product("0.5")]}, {"ServiceCode": service, "Filters": filters}
            )
        spot.add_response(
            "describe_spot_price_history",
            {"SpotPriceHistory": [{"SpotPrice": "0.2"}]},
            {
                "InstanceTypes": [name],
                "ProductDescriptions": ["Linux/UNIX"],
                "StartTime": NOW - prices.SPOT_HISTORY,
            },
        )
        found = prices.read_prices(client, ec2, [name], "eu-west-1", NOW)
    assert found["usd_per_hour"] == {name: {"ec2": 0.5, "emr": 0.5, "spot": [0.2, 0.2]}}


def test_the_file_is_written_as_orchard_reads_it(
    pricing: tuple[Any, Stubber], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, answers = pricing
    ec2 = boto3.client("ec2", region_name="us-west-2")
    with Stubber(ec2) as spot:
        for number in range(len(INSTANCE_TYPES)):
            answers.add_response("get_products", {"PriceList": [product(str(1 + number))]})
            answers.add_response("get_products", {"PriceList": [product("0.5")]})
            history = [{"SpotPrice": str(usd), "AvailabilityZone": "us-west-2a"} for usd in (0.7, 0.4, 0.6)]
            spot.add_response("describe_spot_price_history", {"SpotPriceHistory": history})
        clients = {"pricing": client, "ec2": ec2}
        monkeypatch.setattr(boto3, "client", lambda name, **_: clients[name])
        file = tmp_path / "prices.json"
        assert prices.main(["--region", "us-west-2", "--file", str(file)]) == 0
    written = read_prices(file)
    assert written.region == "us-west-2"
    first = written.by_type["m5.xlarge"]
    assert (first.ec2, first.emr, first.spot_low, first.spot_high) == (1, 0.5, 0.4, 0.7)
    assert len(file.read_text().splitlines()) == len(INSTANCE_TYPES) + 7, "a line per type"


def test_the_file_stays_if_aws_does_not_answer(
    pricing: tuple[Any, Stubber], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, answers = pricing
    answers.add_client_error("get_products", "AccessDeniedException", "not authorized: pricing:GetProducts")
    monkeypatch.setattr(boto3, "client", lambda *_, **__: client)
    file = tmp_path / "prices.json"
    file.write_text("as before")
    assert prices.main(["--file", str(file)]) == 1
    assert file.read_text() == "as before"
    assert "pricing:GetProducts" in caplog.text
    assert f"{file} is as it was" in caplog.text
