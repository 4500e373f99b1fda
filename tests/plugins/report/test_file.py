import base64
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from orchard.report.file import file_data, write_report
from orchard.report.points import load_points
from orchard.run.summary import read_summary
from tests.plugins.deployed import Deployment
from tests.plugins.runs import Run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def data_in(page: str) -> dict[str, Any]:
    """Return the data of the map in a report."""
    found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def summary_of(s3: "S3Client", run: Run) -> dict[str, Any]:
    """Return the summary of a published run."""
    found = read_summary(s3, run.plan["run_uri"])
    assert found is not None
    return found


def numbers(text: str, kind: str) -> "np.ndarray[Any, Any]":
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_published_run_gets_a_report_in_its_folder(deployed: Deployment, second: Run, s3: "S3Client") -> None:
    summary = summary_of(s3, second)
    write_report(s3, deployed.catalog, deployed.settings, summary, 0.1, "https://airflow.example/dags/d/runs/r")
    key = summary["report_uri"].removeprefix(f"s3://{second.bucket}/")
    found = s3.get_object(Bucket=second.bucket, Key=key)
    assert found["ContentType"] == "text/html; charset=utf-8"
    data = data_in(found["Body"].read().decode())
    assert len(data["paths"]) == data["total"] == summary["images_ingested"]
    assert len(numbers(data["coordinates"][0], "<f4")) == data["total"]


def test_neighbours_in_the_file_are_others_of_its_points(deployed: Deployment, second: Run, s3: "S3Client") -> None:
    summary = summary_of(s3, second)
    points = load_points(deployed.catalog, deployed.settings, second.dataset_uri, summary["run_id"])
    data = file_data(s3, points, [])
    neighbours = numbers(data["neighbours"], "<i4").reshape(len(data["paths"]), data["neighbours_each"])
    for index, row in enumerate(neighbours):
        known = row[row >= 0]
        assert index not in known
        assert len(set(known)) == len(known)


def test_a_report_that_cannot_be_written_fails_nothing(
    deployed: Deployment, second: Run, s3: "S3Client", caplog: pytest.LogCaptureFixture
) -> None:
    summary = summary_of(s3, second) | {"report_uri": "s3://no-such-bucket-of-orchard/report.html"}
    with caplog.at_level(logging.WARNING):
        write_report(s3, deployed.catalog, deployed.settings, summary, None, "")
    assert "report: s3://no-such-bucket-of-orchard/report.html is not written" in caplog.text
