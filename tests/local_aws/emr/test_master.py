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
def test_a_master_on_this_machine_can_be_chosen(tmp_path: Path, choice: str, settings: dict[str, str]) -> None:
    assert Master(checked_master(choice), tmp_path).settings() == {"spark.master": choice, **settings}


def test_a_step_takes_an_executor_of_every_standalone_worker(tmp_path: Path) -> None:
    settings = Master("standalone[3,2,1024]", tmp_path).settings()
    assert settings["spark.executor.memory"] == "1024m"
    assert settings["spark.executor.cores"] == "2"
    assert settings["spark.cores.max"] == "6"


@pytest.mark.parametrize(
    "choice",
    ["yarn", "spark://somewhere:7077", "local-cluster[2,1]", "standalone", "standalone[0,1,512]", "local[x]", ""],
)
def test_another_master_is_refused_with_the_way_out(tmp_path: Path, choice: str) -> None:
    with pytest.raises(ValueError, match=r"LOCAL_EMR_MASTER is .*: give local\[N\].* standalone\[2,1,1024\]"):
        checked_master(choice)
    with pytest.raises(ValueError, match="LOCAL_EMR_MASTER is"):
        Master(choice, tmp_path)
