"""The folder of the installed PySpark, which is Spark's home. An import of PySpark would delay the server's start."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final


def _find() -> Path:
    package = find_spec("pyspark")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "pyspark is not installed: run `make setup`, or without the project `pip install orchard-local-aws`"
        )
    return Path(package.origin).parent


SPARK_HOME: Final = _find()
