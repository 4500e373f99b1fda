"""Run six nights of one dataset on this machine.

Between the nights, images are added, changed, deleted and renamed, as people do it. A night costs what is new: the
second night finds nothing new and has no cluster. The fifth night is refused because it is too expensive, and the sixth
because most images have disappeared. The table at the end shows how many images were listed and inferred, how many
clusters existed, and what an EMR cluster is estimated to cost and has cost, at the prices of eu-west-1.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from demo import watch
from demo.local_run import (
    Deployment,
    Run,
    argument_parser,
    copy_file,
    deployment,
    list_files,
    run_once,
    run_program,
    upload,
)
from sandbox import aws
from sandbox.folders import ROOT, make_empty

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NEW, CHANGED, DELETED, RENAMED = 20, 5, 5, 10
LEFT = 12
MOVED = "moved/"
# Changed, deleted and renamed images are different ones, and the dataset needs others beside them.
FEWEST_IMAGES = 2 * (CHANGED + DELETED + RENAMED)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
JPEG_QUALITY = 92
# The columns of the table, with the keys of the summary of a night.
COLUMNS = {
    "listed": "images_listed",
    "new": "new",
    "changed": "changed",
    "deleted": "deleted",
    "inferences": "inferences",
    "embeddings": "embeddings_rows",
    "clusters": "clusters_created",
    "est. USD": "estimated_usd",
    "real USD": "cost_usd",
    "seconds": "seconds",
}
EXAMPLE = """\
example:
  make demo-nights DATA=~/fruits
"""


class TooFewImages(ValueError):
    """The folder has too few images for the changes of the third night."""

    def __init__(self, folder: Path, images: int) -> None:
        super().__init__(f"{folder} has {images} images: use a folder with at least {FEWEST_IMAGES}")


@dataclass(frozen=True)
class Night:
    """A night: what happens to the dataset before the run, the params of the run, and the state in which it ends."""

    title: str
    change: Callable[["S3Client"], None]
    params: Mapping[str, Any]
    run_state: str = "success"


def keys_of_images(s3: "S3Client", prefix: str = aws.DATASET_PREFIX) -> list[str]:
    """Return the keys of the images below a prefix, by default the dataset's, in order."""
    bucket = f"s3://{aws.BUCKET}/"
    keys = [uri.removeprefix(bucket) for uri in list_files(s3, f"{bucket}{prefix.rstrip('/')}")]
    return [key for key in keys if key.lower().endswith(ENDINGS) and "/." not in key]


def read_object(s3: "S3Client", key: str) -> bytes:
    """Return the bytes of an object of the dataset's bucket."""
    return s3.get_object(Bucket=aws.BUCKET, Key=key)["Body"].read()


def other_picture(content: bytes, number: int) -> bytes:
    """Return a picture made from another one: mirrored or turned, so that each number gives another content."""
    ways = list(Image.Transpose)
    image = Image.open(io.BytesIO(content)).convert("RGB").transpose(ways[number % len(ways)])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, comment=f"picture {number}".encode())
    return buffer.getvalue()


def decodable(s3: "S3Client", keys: Sequence[str]) -> Iterator[str]:
    """Yield the keys of images that decode: a folder may have broken ones."""
    for key in keys:
        try:
            Image.open(io.BytesIO(read_object(s3, key))).load()
        except OSError:
            continue
        yield key


def change_some(s3: "S3Client") -> None:
    """Add 20 images, change 5, delete 5, and rename 10."""
    usable = decodable(s3, spread(keys_of_images(s3)))
    changed, deleted, renamed = ([next(usable) for _ in range(count)] for count in (CHANGED, DELETED, RENAMED))
    for number in range(NEW):
        source = changed[number % len(changed)]
        key = f"{source.rsplit('/', 1)[0]}/new-{number}.jpg"
        s3.put_object(Bucket=aws.BUCKET, Key=key, Body=other_picture(read_object(s3, source), number))
    for number, key in enumerate(changed, NEW):
        s3.put_object(Bucket=aws.BUCKET, Key=key, Body=other_picture(read_object(s3, key), number))
    for key in renamed:
        target = f"{key.rsplit('/', 1)[0]}/renamed-{key.rsplit('/', 1)[1]}"
        s3.copy_object(Bucket=aws.BUCKET, Key=target, CopySource={"Bucket": aws.BUCKET, "Key": key})
    for key in [*deleted, *renamed]:
        s3.delete_object(Bucket=aws.BUCKET, Key=key)


def spread(keys: Sequence[str]) -> list[str]:
    """Return the keys in an order in which neighbours come from different folders.

    >>> spread(["a/1", "a/2", "b/1", "b/2"])
    ['a/1', 'b/1', 'a/2', 'b/2']
    """
    folders: dict[str, list[str]] = {}
    for key in keys:
        folders.setdefault(key.rsplit("/", 1)[0], []).append(key)
    numbered = [(number, key) for of_folder in folders.values() for number, key in enumerate(of_folder)]
    return [key for _, key in sorted(numbered)]


def break_one(s3: "S3Client") -> None:
    """Add an image that is cut off in the middle."""
    source = next(decodable(s3, keys_of_images(s3)))
    content = read_object(s3, source)
    key = f"{source.rsplit('/', 1)[0]}/broken.jpg"
    s3.put_object(Bucket=aws.BUCKET, Key=key, Body=content[: len(content) // 2])


def add_one(s3: "S3Client") -> None:
    """Add an image."""
    source = next(decodable(s3, keys_of_images(s3)))
    key = f"{source.rsplit('/', 1)[0]}/one-more.jpg"
    s3.put_object(Bucket=aws.BUCKET, Key=key, Body=other_picture(read_object(s3, source), NEW + CHANGED))


def move_most(s3: "S3Client") -> None:
    """Move all images but 12 to another prefix, as a mistake of a user would do."""
    for key in spread(keys_of_images(s3))[LEFT:]:
        target = f"{MOVED}{key.removeprefix(aws.DATASET_PREFIX)}"
        s3.copy_object(Bucket=aws.BUCKET, Key=target, CopySource={"Bucket": aws.BUCKET, "Key": key})
        s3.delete_object(Bucket=aws.BUCKET, Key=key)


NIGHTS = (
    Night("all images", lambda _: None, {}),
    Night("nothing new", lambda _: None, {}),
    Night(f"{NEW} new, {CHANGED} changed, {DELETED} deleted, {RENAMED} renamed", change_some, {}),
    Night("one broken image, frozen basis", break_one, {"pca_mode": "frozen"}),
)
# Less than any cluster costs: EC2 charges two m5.xlarge for a minute at least, which is 0.0087 USD.
MAX_COST_USD = 0.005
# Nights that `plan` refuses, before anything exists.
REFUSED = (
    Night("above the cost limit", add_one, {"max_cost_usd": MAX_COST_USD}, "failed"),
    Night(f"only {LEFT} images left", move_most, {}, "failed"),
)


def run_nights(
    folder: Path, build_dir: Path, data: Path | None, params: Mapping[str, Any], print_line: watch.PrintLine
) -> list[dict[str, Any]]:
    """Run the nights until one ends in another state than it should, and return a summary of each.

    Args:
        folder: the folder for logs, the nodes of the clusters and Airflow's home. It is emptied first.
        build_dir: the folder of the release's wheels and model.
        data: the folder of the images, or None to render some.
        params: params of the DAG for all nights.
        print_line: prints a line about the progress.

    Raises:
        TooFewImages: the folder has too few images for the changes.
        FileNotFoundError, FileExistsError, sandbox.folders.UnusableFolder, sandbox.aws.BadFileName,
            sandbox.processes.DidNotStart: see `demo.local_run` and `sandbox.folders.make_empty`.
    """
    make_empty(folder, data)
    summaries: list[dict[str, Any]] = []
    with deployment(folder, build_dir, print_line) as deployed:
        data = upload(deployed, data)
        images = len(keys_of_images(deployed.s3))
        if images < FEWEST_IMAGES:
            raise TooFewImages(data, images)
        for number, night in enumerate((*NIGHTS, *REFUSED), 1):
            print_line(f"night {number}: {night.title}")
            night.change(deployed.s3)
            run = run_once(deployed, {**params, **night.params}, f"-{number}")
            rows = embeddings_rows(summaries, run)
            summaries.append(summarise(night, run, rows))
            copy_embeddings(deployed, run, folder / f"night-{number}")
            if run.state != night.run_state:
                break
    return summaries


def embeddings_rows(earlier: Sequence[Mapping[str, Any]], run: Run) -> int:
    """Return how many embeddings the tables show after a run: those of the night before, if it published nothing."""
    if run.published is not None:
        return int(run.published["embeddings_rows"])
    return int(earlier[-1]["embeddings_rows"]) if earlier else 0


def summarise(night: Night, run: Run, rows: int) -> dict[str, Any]:
    """Return the summary of a night, from the XComs of its run."""
    planned, published = run.planned or {}, run.published or {}
    return {
        "night": night.title,
        "run_state": run.state,
        "images_listed": planned.get("listed"),
        "new": planned.get("new"),
        "changed": planned.get("changed"),
        "deleted": planned.get("deleted"),
        "rejected": published.get("images_rejected"),
        "duplicates": published.get("duplicates", 0),
        "inferences": published.get("inferences", 0),
        "clusters_created": len(run.clusters),
        "clusters_alive": run.clusters_alive,
        "embeddings_rows": rows,
        "estimated_usd": 0.0 if planned.get("nothing_to_do") else planned.get("estimate", {}).get("usd"),
        "cost_usd": run.cost["usd"] if run.cost else None if run.clusters else 0.0,
        "cost_usd_per_million": run.cost["usd_per_million"] if run.cost else None,
        "seconds": run.seconds,
        "run_id": published.get("run_id"),
        "pca_model": published.get("pca_model"),
        "tables": published.get("tables"),
    }


def copy_embeddings(deployed: Deployment, run: Run, folder: Path) -> None:
    """Copy the embeddings that a run has published into a local folder, for comparisons."""
    if run.published is None:
        return
    target = folder / "pca.metrics.json"
    copy_file(deployed.s3, f"{run.published['run_uri']}/{target.name}", target)
    metrics = json.loads(target.read_text())
    for file in metrics["files"]["embeddings"]:
        copy_file(deployed.s3, file["uri"], folder / "embeddings" / Path(file["uri"]).name)


def table(nights: Sequence[Mapping[str, Any]]) -> str:
    """Format the summaries as a table with a line per night."""
    width = max(len(night["night"]) for night in nights) + 2
    lines = [f"  {'night':<{width}}" + "".join(f"{name:>11}" for name in COLUMNS) + "  run"]
    for number, night in enumerate(nights, 1):
        values = "".join(f"{night[key] if night[key] is not None else '-':>11}" for key in COLUMNS.values())
        lines.append(f"  {number} {night['night']:<{width - 2}}{values}  {night['run_state']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the nights, and return 0 if all of them end as they should and no cluster is active at the end."""
    parser = argument_parser("python -m demo.nights", __doc__, EXAMPLE, ROOT / "build/nights")
    arguments = parser.parse_args(argv)

    def run(print_line: watch.PrintLine) -> int:
        nights = run_nights(arguments.folder, arguments.build_dir, arguments.data, arguments.params, print_line)
        target = arguments.folder / "summary.json"
        summary = {"nights": nights[: len(NIGHTS)], "refused": nights[len(NIGHTS) :]}
        target.write_text(json.dumps(summary, indent=2))
        print(table(nights))
        print(f"  summary written to {target}, logs in the same folder")
        expected = [night.run_state for night in (*NIGHTS, *REFUSED)]
        return (
            0
            if [night["run_state"] for night in nights] == expected
            and not any(night["clusters_alive"] for night in nights)
            else 1
        )

    return run_program(run, TooFewImages)


if __name__ == "__main__":
    sys.exit(main())
