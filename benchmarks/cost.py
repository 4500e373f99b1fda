"""Compute what a run costs for a number of new images, and write the tables of docs/cost.md.

The rates, the times and the prices are those with which `plan` estimates a run: orchard.cluster.sizing and prices.json.
So the tables are estimates, not measurements on AWS. Use --speed for other rates, for example the ones in the log of
`plan`.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.report import replace_between
from orchard.cluster.instances import INSTANCE_TYPES, primary_type
from orchard.cluster.prices import Prices, read_prices
from orchard.cluster.sizing import Estimate, Speed, Work, estimate, with_spot, workers_needed
from orchard.run.params import DEFAULT_TARGET_MINUTES, MAX_CORE_INSTANCES

PAGE = Path(__file__).parent.parent / "docs/cost.md"
BEGIN, END = "<!-- computed: {}: begin -->", "<!-- computed: {}: end -->"
COUNTS = (10_000, 100_000, 1_000_000, 10_000_000)
DEFAULT_TYPE = "m5.xlarge"
# A photograph of 100 x 100 pixels.
BYTES_PER_IMAGE = 5_000
# The target of the table of all instance types.
LONG_TARGET_MINUTES = 60
COST_COLUMNS = (
    "primary node; workers",
    "minutes",
    "USD On-Demand",
    "USD with Spot",
    "per million On-Demand",
    "per million Spot",
)
EXAMPLE = """\
example:
  PYTHONPATH=plugins python -m benchmarks.cost --write
"""


@dataclass(frozen=True)
class Elsewhere:
    """What another pipeline costs: published images per second on instances of a known price."""

    name: str
    instances: str
    usd_per_hour: float
    images_per_second: float

    @property
    def usd_per_million(self) -> float:
        """The price of a million images, in USD, without the start of the instances."""
        return 1e6 / self.images_per_second / 3600 * self.usd_per_hour


def others(prices: Prices) -> list[Elsewhere]:
    """Return the pipelines to compare with."""
    m5 = prices.by_type[DEFAULT_TYPE].on_demand
    return [
        # Two workers of four vCPUs, between 48 and 52 images per second in its published runs, and a primary node.
        Elsewhere("the hand-made pipeline", "3 x m5.xlarge with EMR, eu-west-1", 3 * m5, 48),
        # Published by Daft's authors, and not measured here: 803,580 images in 263 seconds. The price is On-Demand in
        # us-east-1. https://www.daft.ai/blog/benchmarks-for-multimodal-ai-workloads
        Elsewhere("Daft's published run, another model", "8 x g6.xlarge without EMR, us-east-1", 8 * 0.8048, 3055),
    ]


def sized(images: int, instance_type: str, target_minutes: float, prices: Prices, speed: Speed) -> Estimate:
    """Return the estimate of a run whose images are all new, with as many workers as `plan` gives it."""
    work = Work(objects=images, images=images, bytes=images * BYTES_PER_IMAGE)
    workers = with_spot(workers_needed(work, instance_type, target_minutes, MAX_CORE_INSTANCES, speed))
    return estimate(work, instance_type, workers, prices, speed)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def usd(low: float, high: float | None = None, digits: int = 2) -> str:
    """Format a price, or a range of prices.

    >>> usd(1.234), usd(0.1, 0.1049), usd(0.1, 0.2, digits=3)
    ('1.23', '0.10', '0.100 to 0.200')
    """
    texts = dict.fromkeys(f"{value:.{digits}f}" for value in (low, low if high is None else high))
    return " to ".join(texts)


def _cells(found: Estimate, instance_type: str, images: int) -> list[str]:
    low, high = found.usd_with_spot
    spot = f" + {found.task_instances} on Spot" if found.task_instances else ""
    return [
        f"{primary_type(instance_type)}; {found.core_instances} x {instance_type}{spot}",
        f"{found.minutes:.0f}",
        usd(found.usd),
        usd(low, high),
        usd(1e6 * found.usd / images, digits=3),
        usd(1e6 * low / images, 1e6 * high / images, digits=3),
    ]


def table_of_counts(target_minutes: float, prices: Prices, speed: Speed) -> str:
    """Return the table of a run of each size on the default instance type."""
    rows = [
        [f"{count:,}", *_cells(sized(count, DEFAULT_TYPE, target_minutes, prices, speed), DEFAULT_TYPE, count)]
        for count in COUNTS
    ]
    return markdown(["new images", *COST_COLUMNS], rows)


def table_of_types(images: int, target_minutes: float, prices: Prices, speed: Speed) -> str:
    """Return the table of one run on each instance type, the cheapest first."""
    found = {name: sized(images, name, target_minutes, prices, speed) for name in INSTANCE_TYPES}
    ordered = sorted(found, key=lambda name: found[name].usd_with_spot)
    return markdown(COST_COLUMNS, [_cells(found[name], name, images) for name in ordered])


def table_of_others(prices: Prices) -> str:
    """Return the table of the pipelines to compare with."""
    rows = [
        [other.name, other.instances, f"{other.images_per_second:,.0f}", usd(other.usd_per_million)]
        for other in others(prices)
    ]
    return markdown(["pipeline", "instances", "images/s", "USD per million"], rows)


def tables(target_minutes: float, prices: Prices, speed: Speed) -> dict[str, str]:
    """Return the tables of the page, by name."""
    return {
        "counts": table_of_counts(target_minutes, prices, speed),
        "types": table_of_types(COUNTS[-1], LONG_TARGET_MINUTES, prices, speed),
        "others": table_of_others(prices),
    }


def with_tables(text: str, found: dict[str, str]) -> str:
    """Return a page in which the tables between the markers are replaced.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in found.items():
        text = replace_between(PAGE.name, text, BEGIN.format(name), END.format(name), table)
    return text


def speed_of(text: str) -> Speed:
    """Parse rates in JSON, by the names of Speed, for argparse."""
    names = [field.name for field in fields(Speed)]
    try:
        values = {name: float(value) for name, value in json.loads(text).items()}
        if any(value <= 0 for value in values.values()):
            raise ValueError
        return Speed(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text}: use a JSON object of positive numbers for {', '.join(names)}"
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target-minutes", type=float, default=DEFAULT_TARGET_MINUTES, help="as in the DAG (default: %(default)s)"
    )
    parser.add_argument("--speed", type=speed_of, default=Speed(), help="JSON object with other rates")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/cost.md")
    arguments = parser.parse_args(argv)
    found = tables(arguments.target_minutes, read_prices(), arguments.speed)
    if arguments.write:
        PAGE.write_text(with_tables(PAGE.read_text(), found))
    else:
        print("\n\n".join(found.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
