from types import ModuleType

import pytest

import features
import ingest
import pca


@pytest.mark.parametrize("program", [ingest, features, pca])
def test_help_shows_an_example(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert f"spark-submit --py-files orchard_spark.zip {program.__name__}.py" in capsys.readouterr().out
