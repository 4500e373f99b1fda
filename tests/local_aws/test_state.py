from pathlib import Path

import pytest

from local_aws.state import StateFolder, UnusableState


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    with folder.locked():
        pass
    return folder


def test_an_object_is_stored_by_kind_and_name_until_it_is_removed(state: StateFolder) -> None:
    state.write("objects", "a/b c", 1)
    state.write("objects", "a/b c", 2)
    state.write("objects", "other", 3)
    state.write("clusters", "a/b c", 4)
    assert sorted(state.read("objects")) == [2, 3]
    state.remove("objects", "a/b c")
    state.remove("objects", "never there")
    assert list(state.read("objects")) == [3]


def test_appended_objects_are_read_in_order(state: StateFolder) -> None:
    assert list(state.read_appended("requests")) == []
    for number in range(3):
        state.append("requests", number)
    assert list(state.read_appended("requests")) == [0, 1, 2]


def test_a_partially_written_object_is_cut_off(state: StateFolder, tmp_path: Path) -> None:
    state.append("requests", "whole")
    state.append("requests", "partial")
    file = tmp_path / "state/requests"
    file.write_bytes(file.read_bytes()[:-5])
    assert list(state.read_appended("requests")) == ["whole"]
    state.append("requests", "next")
    assert list(state.read_appended("requests")) == ["whole", "next"]


def test_only_one_server_at_a_time_can_lock_a_folder(state: StateFolder, tmp_path: Path) -> None:
    with (
        state.locked(),
        pytest.raises(UnusableState, match=f"another local_aws uses {tmp_path}: stop it, or use another --data"),
        StateFolder(tmp_path / "state").locked(),
    ):
        pass
    with StateFolder(tmp_path / "state").locked():
        pass


def test_an_unreadable_file_is_reported_with_its_path_and_advice(state: StateFolder, tmp_path: Path) -> None:
    state.write("objects", "key", 1)
    (file,) = (tmp_path / "state/objects").glob("*/*")
    file.write_bytes(b"\x80\x05cmoto.s3.models\nRenamed\n.")
    with pytest.raises(UnusableState, match=f"cannot read {file} .*use another --data, or delete {tmp_path}/state"):
        list(state.read("objects"))
