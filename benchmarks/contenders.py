"""Run one of the programs that `benchmarks.run` measures, and print its measurements as one line of JSON.

Each contender runs in a process of its own. The steps are not among them: `benchmarks.run` starts those with
spark-submit, as on a cluster.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from orchard_spark.parts import Part

PCA_COMPONENTS = 50
BATCH_IMAGES = 8
FEATURE_ROWS, FEATURE_COLUMNS, FEATURE_FILES = 67_692, 1280, 4
EXAMPLE = """\
example:
  python -m benchmarks.contenders bare_gram build/bench/features
"""


def peak_mb() -> float:
    """Return the peak memory of this program in MB.

    `getrusage` would report too much: on Linux it includes the memory of the parent process from before `exec`.
    """
    (peak_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(peak_kb) * 1024 / 1e6, 1)


def predecessor(images: str, work: str) -> dict[str, float]:
    """The recipe of the predecessor: seconds to read and featurise, and seconds to scale and reduce the features."""
    import io

    import pandas as pd
    from PIL import Image
    from pyspark.ml.feature import PCA, StandardScaler
    from pyspark.ml.linalg import Vectors, VectorUDT
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col, udf
    from pyspark.sql.pandas.functions import pandas_udf

    started = time.monotonic()
    spark = SparkSession.builder.getOrCreate()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from keras.applications.mobilenet_v2 import MobileNetV2

    # Random weights are as fast as trained ones and need no download.
    trained = MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3))
    weights = spark.sparkContext.broadcast(trained.get_weights())

    def preprocess(content: bytes) -> npt.NDArray[np.float32]:
        image = Image.open(io.BytesIO(content)).resize((224, 224), Image.Resampling.BICUBIC)
        return np.asarray(image, np.float32) / 127.5 - 1

    @pandas_udf("array<float>")  # type: ignore[call-overload,untyped-decorator]  # its type hints make it a scalar iterator
    def featurise(series: Iterator[pd.Series]) -> Iterator[pd.Series]:
        model = MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3))
        model.set_weights(weights.value)
        for contents in series:
            yield pd.Series(list(model.predict(np.stack([preprocess(content) for content in contents]))))

    read = spark.read.format("binaryFile").option("pathGlobFilter", "*.jpg").option("recursiveFileLookup", "true")
    frame = read.load(images).repartition(24)
    features = frame.select(col("path"), featurise("content").alias("features"))
    features.write.mode("overwrite").parquet(f"{work}/features")
    featurised = time.monotonic()

    to_vector = udf(lambda values: Vectors.dense(values), VectorUDT())
    vectors = spark.read.parquet(f"{work}/features").select("path", to_vector("features").alias("vector"))
    scaler = StandardScaler(inputCol="vector", outputCol="scaled", withMean=True, withStd=True)
    scaled = scaler.fit(vectors).transform(vectors)
    model = PCA(k=PCA_COMPONENTS, inputCol="scaled", outputCol="pca").fit(scaled)
    model.transform(scaled).select("path", "pca").write.mode("overwrite").parquet(f"{work}/pca")
    spark.stop()
    return {"read_and_featurise": featurised - started, "pca": time.monotonic() - featurised}


def bare_features(images: str, model_file: str, number: str, count: str) -> dict[str, float]:
    """A bare loop over every `count`-th image: read, decode, resize, infer."""
    from ai_edge_litert.interpreter import Interpreter
    from PIL import Image

    files = sorted(Path(images).rglob("*.jpg"))[int(number) :: int(count)]
    interpreter = Interpreter(model_path=model_file, num_threads=1)
    (input_tensor,), (output_tensor,) = interpreter.get_input_details(), interpreter.get_output_details()
    features = np.empty((len(files), 1280), np.float32)
    allocated = 0
    started = time.monotonic()
    for first in range(0, len(files), BATCH_IMAGES):
        batch = np.stack(
            [
                np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
                for file in files[first : first + BATCH_IMAGES]
            ]
        )
        if len(batch) != allocated:
            interpreter.resize_tensor_input(input_tensor["index"], batch.shape)
            interpreter.allocate_tensors()
            allocated = len(batch)
        interpreter.set_tensor(input_tensor["index"], batch)
        interpreter.invoke()
        features[first : first + len(batch)] = interpreter.get_tensor(output_tensor["index"])
    return {"loop": time.monotonic() - started, "images": len(files), "peak_mb": peak_mb()}


def phases(ingested: str, model_file: str, target: str) -> dict[str, float]:
    """Microseconds per image of each phase of the features step, one phase after the other in one thread."""
    import features
    from orchard_spark import images, mobilenet, parts, schemas

    model = mobilenet.load(Path(model_file).read_bytes())
    found = parts_in(ingested)
    seconds: dict[str, float] = {}
    ended = time.monotonic()

    def end(phase: str) -> None:
        nonlocal ended
        started, ended = ended, time.monotonic()
        seconds[phase] = seconds.get(phase, 0.0) + ended - started

    for part in found:
        with parts.Writer(f"file://{target}", schemas.FEATURES) as writer:
            for batch in parts.read(part, features.COLUMNS, features.BATCH_ROWS):
                end("read")
                decoded = [images.decode(content.as_py())[0] for content in batch["content"]]
                end("decode")
                pixels = [images.to_model_input(image, model.size_px) for image in decoded]
                end("resize")
                values = np.stack(list(model.features(pixels)))
                end("inference")
                rows = features.features_batch(batch["sha256"], values, "model", "run")
                end("arrow")
                writer.write(rows)
                end("write")
        end("write")
    return {f"{phase}_us": round(duration * 1e6 / parts.count_rows(found), 1) for phase, duration in seconds.items()}


def parts_in(folder: str) -> "list[Part]":
    """Return the Parquet files of a local folder, as the steps list them."""
    import pyarrow.parquet as pq

    from orchard_spark.parts import Part

    files = sorted(Path(folder.removeprefix("file://")).glob("*.parquet"))
    return [Part(f"file://{file}", pq.read_metadata(file).num_rows, file.stat().st_size) for file in files]


def write_features(target: str) -> dict[str, float]:
    """Write features like the real features of 67,692 images: correlated, not negative, half of them zero."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from orchard_spark import schemas

    folder = Path(target)
    rng = np.random.default_rng(360)
    mixing = rng.normal(size=(100, FEATURE_COLUMNS)).astype(np.float32)
    folder.mkdir(parents=True)
    for number, count in enumerate(len(part) for part in np.array_split(np.arange(FEATURE_ROWS), FEATURE_FILES)):
        noise = rng.normal(size=(count, FEATURE_COLUMNS)).astype(np.float32)
        values = np.maximum(rng.normal(size=(count, 100)).astype(np.float32) @ mixing / 10 + noise, 0)
        columns = {"sha256": [f"{number:08x}{row:056x}" for row in range(count)], "model": ["m"] * count}
        columns |= {"features": schemas.to_list_array(values), "run_id": ["r"] * count}
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")
    return {"rows": FEATURE_ROWS}


def our_fit(features: str) -> dict[str, float]:
    """The fit of the pca step: seconds from an open session to the components."""
    import pca
    from orchard_spark import moments, parts, step
    from orchard_spark.locations import Selection

    with step.spark_context("benchmark") as context:
        started = time.monotonic()
        found = [
            Selection(part, np.arange(part.rows), np.arange(part.rows), np.ones(part.rows, np.int64))
            for part in parts_in(features)
        ]
        usage = parts.task_usage(context)
        sums = pca.moments(context, found, usage)
        moments.fit(sums, PCA_COMPONENTS)
        seconds = time.monotonic() - started
        worker_mb = max(task.peak_bytes for task in usage.value) / 1e6
    return {"fit": seconds, "rows": sums.n, "peak_mb": peak_mb(), "worker_peak_mb": round(worker_mb, 1)}


def spark_ml_fit(features: str) -> dict[str, float]:
    """StandardScaler and PCA of Spark ML: seconds from an open session to the components."""
    from pyspark.ml.feature import PCA, StandardScaler
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col

    spark = SparkSession.builder.getOrCreate()
    started = time.monotonic()
    vectors = spark.read.parquet(features).select(array_to_vector(col("features")).alias("vector"))
    scaler = StandardScaler(inputCol="vector", outputCol="scaled", withMean=True, withStd=True)
    scaled = scaler.fit(vectors).transform(vectors)
    PCA(k=PCA_COMPONENTS, inputCol="scaled", outputCol="pca").fit(scaled)
    seconds = time.monotonic() - started
    spark.stop()
    return {"fit": seconds}


def bare_gram(features: str) -> dict[str, float]:
    """Only the sums of products over the same files, with BLAS on all cores, without a fit."""
    import pyarrow.parquet as pq

    def gram(file: Path) -> npt.NDArray[np.float64]:
        column = pq.read_table(file, columns=["features"])["features"].combine_chunks()
        rows = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float64)
        return np.asarray(rows.T @ rows)

    started = time.monotonic()
    reduce(add, (gram(file) for file in sorted(Path(features).glob("*.parquet"))))
    return {"fit": time.monotonic() - started, "peak_mb": peak_mb()}


def binary_file(uri: str) -> dict[str, float]:
    """Spark's reader of binary files over S3A: seconds from an open session until the last byte is read."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    started = time.monotonic()
    frame = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(uri)
    rows = frame.selectExpr("count(*)", "sum(length(content))").first()
    seconds = time.monotonic() - started
    spark.stop()
    assert rows is not None  # noqa: S101  # an aggregate returns a row
    return {"read": seconds, "objects": float(rows[0])}


def bare_ingest(uri: str, number: str, count: str) -> dict[str, float]:
    """The reader of the ingest step in a bare loop over every `count`-th object: read and verify only."""
    import boto3

    import ingest
    from orchard_spark import images, objects, read_ahead

    root, prefix = objects.split(uri)
    bucket = root.removeprefix("s3://")
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    listed = [
        read_ahead.Listed(f"{root}/{item['Key']}", "", item["ETag"].strip('"'), item["Size"], item["LastModified"])
        for page in pages
        for item in page["Contents"]
    ][int(number) :: int(count)]
    objects.store(root)
    started = time.monotonic()
    for item, content in read_ahead.read_all(listed):
        ingest.verify(item, content, images.DEFAULT_MAX_PIXELS)
    return {"loop": time.monotonic() - started, "objects": len(listed), "peak_mb": peak_mb()}


CONTENDERS: dict[str, Callable[..., dict[str, float]]] = {
    function.__name__: function
    for function in (
        predecessor,
        bare_features,
        phases,
        write_features,
        our_fit,
        spark_ml_fit,
        bare_gram,
        binary_file,
        bare_ingest,
    )
}


def main(argv: list[str] | None = None) -> None:
    """Run a contender and print its measurements."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contenders",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="arguments of the contender's function")
    arguments = parser.parse_args(argv)
    print(json.dumps(CONTENDERS[arguments.name](*arguments.arguments)))


if __name__ == "__main__":
    main()
