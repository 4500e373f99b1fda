"""Read the prices of Orchard's instance types from AWS, and write them into plugins/orchard/cluster/prices.json.

It needs credentials that allow pricing:GetProducts and ec2:DescribeSpotPriceHistory. EC2 and EMR prices are those of
AWS's price list. The Spot prices are the lowest and the highest of all zones of the region in the last 7 days.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

log = logging.getLogger(__name__)

# Orchard reads this file, which also lists the instance types.
FILE = Path(__file__).parent.parent / "plugins/orchard/cluster/prices.json"
# AWS answers price queries for all regions, but only in a few: https://docs.aws.amazon.com/general/latest/gr/billing.html
PRICING_REGION = "us-east-1"
SPOT_HISTORY = timedelta(days=7)
EXAMPLE = """\
example:
  python -m infra.prices --region eu-west-1
"""


class NoPrice(ValueError):
    """AWS has no price, or several, for an instance type."""


def on_demand_usd(pricing: Any, service: str, attributes: Mapping[str, str]) -> float:
    """Return the On-Demand price per hour of the only product with these attributes.

    Raises:
        NoPrice: there is no such product, or several have different prices.
    """
    filters: Any = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in attributes.items()]
    pages = pricing.get_paginator("get_products").paginate(ServiceCode=service, Filters=filters)
    found = set()
    for product in (json.loads(text) for page in pages for text in page["PriceList"]):
        for term in product["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                if dimension["unit"] == "Hrs":
                    found.add(float(dimension["pricePerUnit"]["USD"]))
    if len(found) != 1:
        raise NoPrice(f"{service} has {len(found)} hourly prices for {dict(attributes)}, not one: {sorted(found)}")
    return found.pop()


def spot_usd(ec2: Any, name: str, since: datetime) -> tuple[float, float]:
    """Return the lowest and the highest Spot price of an instance type in a region.

    Raises:
        NoPrice: EC2 has no Spot price for the type.
    """
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=[name],
        ProductDescriptions=["Linux/UNIX"],
        StartTime=since,
    )
    found = [float(item["SpotPrice"]) for page in pages for item in page["SpotPriceHistory"]]
    if not found:
        raise NoPrice(f"EC2 has no Spot price for {name} since {since:%Y-%m-%d}")
    return min(found), max(found)


def read_prices(pricing: Any, ec2: Any, names: Iterable[str], region: str, now: datetime) -> dict[str, Any]:
    """Return the prices of instance types, as the file has them.

    Raises:
        NoPrice: AWS has no price, or several, for a type.
    """
    by_type = {}
    for name in names:
        product = {"instanceType": name, "regionCode": region}
        linux = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}
        by_type[name] = {
            "ec2": on_demand_usd(pricing, "AmazonEC2", product | linux),
            "emr": on_demand_usd(pricing, "ElasticMapReduce", product | {"softwareType": "EMR"}),
            "spot": list(spot_usd(ec2, name, now - SPOT_HISTORY)),
        }
        log.info("%s: %s USD per hour", name, by_type[name])
    return {
        "region": region,
        "date": f"{now:%Y-%m-%d}",
        "source": "AWS's price list API and EC2's Spot price history of 7 days",
        "usd_per_hour": by_type,
    }


def to_json(content: Mapping[str, Any]) -> str:
    """Return the content of the file, with a line per instance type, so that a change is one line of a diff."""
    types = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(price)}" for name, price in content["usd_per_hour"].items()
    )
    head = ",\n".join(f"  {json.dumps(key)}: {json.dumps(content[key])}" for key in ("region", "date", "source"))
    return f'{{\n{head},\n  "usd_per_hour": {{\n{types}\n  }}\n}}\n'


def main(argv: list[str] | None = None) -> int:
    """Write the file, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.prices",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--region", default="eu-west-1", help="region of the clusters (default: eu-west-1)")
    parser.add_argument("--file", type=Path, default=FILE, help="file to write (default: prices.json of Orchard)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pricing = boto3.client("pricing", region_name=PRICING_REGION)
    ec2 = boto3.client("ec2", region_name=arguments.region)
    try:
        names = json.loads(FILE.read_text())["usd_per_hour"]
        content = read_prices(pricing, ec2, names, arguments.region, datetime.now(UTC))
    except (NoPrice, BotoCoreError, ClientError) as error:
        log.error("failed: %s. %s is as it was", error, arguments.file)
        return 1
    arguments.file.write_text(to_json(content))
    log.info("wrote the prices of %d instance types to %s", len(content["usd_per_hour"]), arguments.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
