from pathlib import Path

import pytest

from local_aws.emr.master import Master, checked_master


@pytest.mark.parametrize(
    ("choice", "settings"),
    [
        ("local", {}),
        ("local[*]", {}),
        ("local[2]", {}),
        ("local-cluster[2,1,1024]", {"spark.executor.memory": "1024m"}),
    ],
)
def test_local_masters_are_supported(tmp_path: Path, choice: str, settings: dict[str, str]) -> None:
    assert Master(checked_master(choice), tmp_path).settings() == {"spark.master": choice, **settings}


def test_a_step_gets_an_executor_on_every_standalone_worker(tmp_path: Path) -> None:
    settings = Master("standalone[3,2,1024]", tmp_path).settings()
    assert settings["spark.executor.memory"] == "1024m"
    assert settings["spark.executor.cores"] == "2"
    assert settings["spark.cores.max"] == "6"


@pytest.mark.parametrize(
    "choice",
    ["yarn", "spark://somewhere:7077", "local-cluster[2,1]", "standalone", "standalone[0,1,512]", "local[x]", ""],
)
def test_an_unsupported_master_is_rejected_with_the_alternatives(tmp_path: Path, choice: str) -> None:
    with pytest.raises(ValueError, match=r"LOCAL_EMR_MASTER is .*: use local\[N\].* standalone\[2,1,1024\]"):
        checked_master(choice)
    with pytest.raises(ValueError, match="LOCAL_EMR_MASTER is"):
        Master(choice, tmp_path)
