"""The prices of the instance types. They are in prices.json, which `make prices` writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.errors import PermanentError

FILE = Path(__file__).with_name("prices.json")
# AWS changes the prices of these types rarely, but Spot prices move with demand.
MAX_AGE_DAYS = 180
REMEDY = "Write it again with `make prices`"


class BadPrices(PermanentError):
    """The file of prices cannot be used."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"{file}: {fault}. {REMEDY}")


@dataclass(frozen=True)
class Price:
    """The price of an instance in USD per hour: EC2 On-Demand, EMR's part, and the range of EC2's Spot price."""

    ec2: float
    emr: float
    spot_low: float
    spot_high: float

    @property
    def on_demand(self) -> float:
        """EC2 On-Demand and EMR together."""
        return self.ec2 + self.emr

    @property
    def spot(self) -> tuple[float, float]:
        """The range of EC2 Spot and EMR together."""
        return self.spot_low + self.emr, self.spot_high + self.emr


@dataclass(frozen=True)
class Prices:
    """The prices of all instance types in a region, on a day."""

    region: str
    read_on: date
    source: str
    by_type: Mapping[str, Price]

    def faults(self, region: str, today: date) -> list[str]:
        """Return why an estimate for a region may be wrong. Return an empty list if the prices are of it and recent."""
        faults = []
        if region != self.region:
            faults.append(f"the prices are of {self.region}, not of {region}")
        age_days = (today - self.read_on).days
        if age_days > MAX_AGE_DAYS:
            faults.append(f"the prices are {age_days} days old, of {self.read_on}")
        return faults


@cache
def read_prices(file: Path = FILE) -> Prices:
    """Read the prices of all instance types.

    Raises:
        BadPrices: the file is missing or is not JSON, or a price is missing or is not a positive number.
    """
    try:
        content = json.loads(file.read_text())
        read_on = date.fromisoformat(content["date"])
        prices = {name: _price(content["usd_per_hour"][name]) for name in INSTANCE_TYPES}
        return Prices(str(content["region"]), read_on, str(content["source"]), prices)
    except OSError as error:
        raise BadPrices(file, f"cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise BadPrices(file, f"has no {error.args[0]}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadPrices(file, str(error)) from error


def _price(values: Mapping[str, Any]) -> Price:
    spot_low, spot_high = values["spot"]
    price = Price(*(float(value) for value in (values["ec2"], values["emr"], spot_low, spot_high)))
    if not (0 < price.ec2 < 1000 and 0 < price.emr < 1000 and 0 < price.spot_low <= price.spot_high < 1000):
        raise ValueError(f"{dict(values)} are not prices in USD per hour")
    return price
