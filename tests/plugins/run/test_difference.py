import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchard.dataset.listing import LISTED
from orchard.run import difference, row_files
from orchard.run.difference import (
    IMAGE_INFO,
    INVENTORY,
    KNOWN,
    NUMBERED,
    REJECTS,
    Difference,
    Rules,
    TwoRowsOfOneObject,
    compare,
    known_rows,
)
from orchard.run.row_files import LocalFile, RowWriter, deal, file_count
from orchard_spark import schemas

Row = Mapping[str, Any]
ALL = Rules(keep_images=True, keep_rejects=True, max_pixels=100)
MODIFIED = datetime(2026, 11, 22, tzinfo=UTC)


def listed(path: str, etag: str = "1", reason: str | None = None, storage_class: str = "STANDARD") -> Row:
    return {
        "path": path,
        "label": "Kiwi",
        "etag": etag,
        "size": 10,
        "modified": MODIFIED,
        "storage_class": storage_class,
        "reason": reason,
        "message": reason and f"the listing says {reason}",
    }


def image(path: str, etag: str = "1", pixels: int = 100) -> Row:
    size = {"width": pixels, "height": 1}
    return {"path": path, "etag": etag, "sha256": f"sha of {path}", "format": "PNG", **size, "features_run_id": "r0"}


def reject(path: str, reason: str, etag: str = "1") -> Row:
    return {"path": path, "etag": etag, "reason": reason, "message": f"an earlier run says {reason}"}


def read(files: Sequence[LocalFile]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in files:
        table = pq.read_table(file.path)
        assert table.num_rows == file.rows > 0
        rows += table.to_pylist()
    return sorted(rows, key=lambda row: str(row["path"]))


@dataclass(frozen=True)
class Compared:
    """A difference, and the rows of its files."""

    found: Difference
    inventory: list[dict[str, Any]]
    images: list[dict[str, Any]]
    rejects: list[dict[str, Any]]

    def paths(self) -> tuple[list[str], list[str], list[str]]:
        """Return the paths to read, those of the images that are kept, and those of the rejects that are kept."""
        inventory, images, rejects = (
            [str(row["path"]) for row in rows] for rows in (self.inventory, self.images, self.rejects)
        )
        return inventory, images, rejects


def compare_rows(listing: Sequence[Row], known: Sequence[Row], rules: Rules = ALL) -> Compared:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RowWriter(folder, "listed", LISTED) as of_listing, RowWriter(folder, "known", KNOWN) as of_known:
            of_listing.write(pa.RecordBatch.from_pylist(list(listing), schema=LISTED))
            of_known.write(pa.RecordBatch.from_pylist(list(known), schema=KNOWN))
        reasons = Counter(row["reason"] or ("" if row["size"] else "empty") for row in listing)
        del reasons[""]
        found = compare(folder, of_listing, of_known, rules, reasons)
        return Compared(found, read(found.inventory), read(found.kept_images), read(found.kept_rejects))


def test_without_a_published_run_every_object_is_new() -> None:
    compared = compare_rows([listed("a"), listed("b", reason="empty")], [])
    assert compared.paths() == (["a", "b"], [], [])
    assert (compared.found.new, compared.found.changed, compared.found.deleted) == (2, 0, 0)
    assert [row["reason"] for row in compared.inventory] == [None, "empty"]
    assert compared.found.listing_rejects == {"empty": 1}
    assert compared.found.bytes_to_read == 10
    assert compared.found.readable == 1


def test_an_image_with_the_same_path_and_etag_is_kept_with_what_is_known_of_it() -> None:
    compared = compare_rows([{**listed("a"), "size": 11}], [image("a", pixels=7)])
    assert compared.paths() == ([], ["a"], [])
    assert compared.images == [
        {
            "path": "a",
            "label": "Kiwi",
            "etag": "1",
            "size": 11,
            "modified": MODIFIED,
            "sha256": "sha of a",
            "format": "PNG",
            "width": 7,
            "height": 1,
            "features_run_id": "r0",
        }
    ]
    assert (compared.found.unchanged, compared.found.listed, compared.found.readable) == (1, 1, 1)


def test_an_image_with_another_etag_is_changed() -> None:
    compared = compare_rows([listed("a", etag="2")], [image("a", etag="1")])
    assert compared.paths() == (["a"], [], [])
    assert (compared.found.new, compared.found.changed, compared.found.deleted) == (0, 1, 0)


def test_an_object_that_is_not_listed_is_deleted_whether_it_was_an_image_or_a_reject() -> None:
    compared = compare_rows([listed("c")], [image("a"), reject("b", "undecodable"), image("c")])
    assert compared.paths() == ([], ["c"], [])
    assert (compared.found.new, compared.found.changed, compared.found.deleted) == (0, 0, 2)


def test_a_renamed_object_is_deleted_and_new() -> None:
    compared = compare_rows([listed("new name", etag="1")], [image("old name", etag="1")])
    assert (compared.found.new, compared.found.changed, compared.found.deleted) == (1, 0, 1)


def test_another_model_makes_every_image_changed_and_keeps_the_rejects() -> None:
    rules = Rules(keep_images=False, keep_rejects=True, max_pixels=100)
    compared = compare_rows([listed("a"), listed("b")], [image("a"), reject("b", "undecodable")], rules)
    assert compared.paths() == (["a"], [], ["b"])
    assert compared.found.changed == 1


def test_an_image_that_has_become_too_large_for_the_run_is_read_again() -> None:
    known = [image("a", pixels=100), image("b", pixels=101)]
    assert compare_rows([listed("a"), listed("b")], known).paths() == (["b"], ["a"], [])


def test_the_number_of_pixels_may_exceed_32_bits() -> None:
    known = [{**image("a"), "width": 2**31 - 1, "height": 2**31 - 1}]
    assert compare_rows([listed("a")], known).paths() == (["a"], [], [])


@pytest.mark.parametrize("reason", ["archived", "too_many_bytes", "empty"])
def test_an_image_that_the_listing_rejects_is_a_reject_without_being_read(reason: str) -> None:
    compared = compare_rows([listed("a", reason=reason)], [image("a")])
    assert compared.paths() == (["a"], [], [])
    assert (compared.inventory[0]["reason"], compared.found.listing_rejects) == (reason, {reason: 1})
    assert compared.inventory[0]["message"] == f"the listing says {reason}"
    assert (compared.found.bytes_to_read, compared.found.readable) == (0, 0)


@pytest.mark.parametrize("reason", ["undecodable", "unknown_format", "too_many_pixels", "forbidden", "empty"])
def test_a_reject_that_has_not_changed_stays_rejected_without_being_read(reason: str) -> None:
    compared = compare_rows([listed("a")], [reject("a", reason)])
    assert compared.paths() == ([], [], ["a"])
    assert compared.rejects == [
        {
            "path": "a",
            "label": "Kiwi",
            "etag": "1",
            "size": 10,
            "reason": reason,
            "message": f"an earlier run says {reason}",
        }
    ]
    assert compared.found.kept_reject_reasons == compared.found.rejects == {reason: 1}
    assert (compared.found.rejects_kept, compared.found.readable) == (1, 0)


@pytest.mark.parametrize("reason", ["deleted", "changed"])
def test_an_object_that_was_not_at_rest_when_it_was_read_is_read_again(reason: str) -> None:
    compared = compare_rows([listed("a")], [reject("a", reason)])
    assert compared.paths() == (["a"], [], [])
    assert compared.inventory[0]["reason"] is None
    assert compared.inventory[0]["message"] is None


def test_a_reject_with_another_etag_is_read_again() -> None:
    assert compare_rows([listed("a", etag="2")], [reject("a", "undecodable")]).paths() == (["a"], [], [])


def test_another_decoder_or_other_limits_read_the_rejects_again() -> None:
    rules = Rules(keep_images=True, keep_rejects=False, max_pixels=100)
    compared = compare_rows([listed("a"), listed("b")], [image("a"), reject("b", "undecodable")], rules)
    assert compared.paths() == (["b"], ["a"], [])


@pytest.mark.parametrize("keep_rejects", [True, False])
def test_what_the_listing_itself_rejects_stays_rejected_with_its_present_message(keep_rejects: bool) -> None:
    rules = Rules(keep_images=True, keep_rejects=keep_rejects, max_pixels=100)
    compared = compare_rows([listed("a", reason="too_many_bytes")], [reject("a", "too_many_bytes")], rules)
    assert compared.paths() == ([], [], ["a"])
    assert compared.rejects[0]["message"] == "the listing says too_many_bytes"


def test_a_reject_that_the_listing_rejects_for_another_reason_gets_that_reason() -> None:
    compared = compare_rows([listed("a", reason="archived")], [reject("a", "undecodable")])
    assert compared.paths() == (["a"], [], [])
    assert compared.inventory[0]["reason"] == "archived"


@pytest.mark.parametrize(
    ("storage_class", "is_kept"),
    [("INTELLIGENT_TIERING", True), ("GLACIER", False), ("DEEP_ARCHIVE", False), ("STANDARD", False)],
)
def test_an_archived_object_that_was_restored_is_read_unless_the_listing_cannot_show_it(
    storage_class: str, is_kept: bool
) -> None:
    compared = compare_rows([listed("a", storage_class=storage_class)], [reject("a", "archived")])
    assert compared.paths() == (([], [], ["a"]) if is_kept else (["a"], [], []))


def test_an_empty_object_counts_as_a_reject_although_the_listing_does_not_mark_it() -> None:
    listing = [{**listed(path), "size": 0} for path in ("a", "b", "c")]
    compared = compare_rows(listing, [reject("a", "empty"), reject("b", "empty", etag="2")])
    assert compared.paths() == (["b", "c"], [], ["a"])
    assert (compared.found.listing_rejects, compared.found.kept_reject_reasons) == ({"empty": 2}, {"empty": 1})
    assert (compared.found.rejects, compared.found.readable) == ({"empty": 3}, 0)


def test_an_object_that_is_archived_without_a_sign_in_the_listing_counts_once() -> None:
    listing = [listed("a", storage_class="INTELLIGENT_TIERING"), listed("b", reason="archived")]
    compared = compare_rows(listing, [reject("a", "archived")])
    assert compared.found.rejects == {"archived": 2}


def test_two_rows_of_an_object_in_the_tables_are_refused() -> None:
    with pytest.raises(TwoRowsOfOneObject, match=r"1 objects are listed, but their comparison .* has 2 rows"):
        compare_rows([listed("a")], [image("a"), reject("a", "undecodable")])


PATHS = st.sampled_from(["a", "b", "c", "d/e", "f\ng", "ü"])
LISTINGS = st.dictionaries(
    PATHS,
    st.tuples(
        st.sampled_from("12"),
        st.sampled_from([None, "archived", "too_many_bytes", "empty"]),
        st.sampled_from(["STANDARD", "GLACIER", "INTELLIGENT_TIERING"]),
    ),
)
STATES = st.dictionaries(
    PATHS,
    st.tuples(
        st.sampled_from("12"),
        st.sampled_from([None, "archived", "too_many_bytes", "empty", "undecodable", "deleted", "changed"]),
        st.sampled_from([99, 100, 101]),
    ),
)
RULES = st.builds(Rules, keep_images=st.booleans(), keep_rejects=st.booleans(), max_pixels=st.just(100))


@given(LISTINGS, STATES, RULES)
@hypothesis_settings(deadline=None, max_examples=150)
def test_each_listed_object_is_read_or_kept_exactly_once_and_each_other_known_object_is_deleted(
    listing: dict[str, tuple[str, str | None, str]], state: dict[str, tuple[str, str | None, int]], rules: Rules
) -> None:
    known = [
        reject(path, reason, etag) if reason else image(path, etag, pixels)
        for path, (etag, reason, pixels) in state.items()
    ]
    compared = compare_rows([listed(path, *values) for path, values in listing.items()], known, rules)
    inventory, images, rejects = compared.paths()
    assert sorted([*inventory, *images, *rejects], key=str) == sorted(listing, key=str)
    found = compared.found
    gone = [path for path in state.keys() - listing if state[path][1] != "deleted"]  # that reject was gone before
    assert (found.new, found.deleted) == (len(listing.keys() - state), len(gone))
    assert found.changed == len(inventory) - found.new
    assert (found.images_kept, found.rejects_kept, found.listed) == (len(images), len(rejects), len(listing))
    for path in images:
        assert listing[path][:2] == state[path][:2] == (state[path][0], None)
        assert rules.keep_images
        assert state[path][2] <= rules.max_pixels
    for path in rejects:
        assert listing[path][0] == state[path][0]
        assert state[path][1] is not None
        assert listing[path][1] == state[path][1] or (listing[path][1] is None and rules.keep_rejects)
    for path in set(inventory) & state.keys():
        unchanged = listing[path][0] == state[path][0]
        assert not (unchanged and listing[path][1] and listing[path][1] == state[path][1])
        assert not (unchanged and rules.keep_rejects and listing[path][1] is None and state[path][1] == "undecodable")
        is_image = listing[path][1] is None and state[path][1] is None
        assert not (unchanged and is_image and rules.keep_images and state[path][2] <= rules.max_pixels)


def test_only_the_rows_of_the_published_run_are_known() -> None:
    schema = pa.schema([("path", pa.string()), ("etag", pa.string()), ("reason", pa.string()), ("run_id", pa.string())])
    rows = [{"path": name, "etag": "1", "reason": "empty", "run_id": run} for name, run in (("a", "r1"), ("b", "r2"))]
    (batch,) = known_rows([pa.RecordBatch.from_pylist(rows, schema=schema)], "r1")
    assert batch.schema == KNOWN
    assert [(row["path"], row["reason"], row["sha256"]) for row in batch.to_pylist()] == [("a", "empty", None)]


def numbered(folder: Path, rows: int) -> tuple[LocalFile, ...]:
    with RowWriter(folder, "numbered", NUMBERED) as writer:
        for number in range(rows):
            row = {**listed(f"{number:04}"), "number": number}
            writer.write(pa.RecordBatch.from_pylist([row], schema=NUMBERED))
    return writer.files


@pytest.mark.parametrize(("rows", "files"), [(0, 0), (1, 1), (10, 1), (10, 3), (10, 10)])
def test_neighbours_of_the_inventory_are_dealt_to_different_files_of_equal_size(
    tmp_path: Path, rows: int, files: int
) -> None:
    dealt = deal(tmp_path, numbered(tmp_path, rows), INVENTORY, files)
    found = [[int(row["path"]) for row in read([file])] for file in dealt]
    assert found == [list(range(number, rows, files)) for number in range(files)]
    assert {pq.read_schema(file.path) for file in dealt} <= {INVENTORY}


def test_dealing_works_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "ROW_GROUP_ROWS", 7)
    dealt = deal(tmp_path, numbered(tmp_path, 100), INVENTORY, 3)
    assert [file.rows for file in dealt] == [34, 33, 33]
    assert [int(row["path"]) for row in read([dealt[1]])] == list(range(1, 100, 3))


@pytest.mark.parametrize(
    ("rows", "total_bytes", "slots", "files"),
    [(1000, 100 * 5_000_000, 8, 8), (1000, 1000 * 5_000_000, 8, 40), (5, 10**12, 8, 5), (0, 0, 8, 0), (3, 0, 8, 3)],
)
def test_a_file_has_128_mib_of_objects_and_each_task_slot_as_many_files(
    rows: int, total_bytes: int, slots: int, files: int
) -> None:
    assert file_count(rows, total_bytes, slots) == files


def test_kept_images_are_divided_into_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "ROW_GROUP_ROWS", 2)
    monkeypatch.setattr(difference, "KEPT_FILE_ROWS", 4)
    paths = [f"{number:02}" for number in range(11)]
    compared = compare_rows([listed(path) for path in paths], [image(path) for path in paths])
    assert [row["path"] for row in compared.images] == paths
    assert len(compared.found.kept_images) == 3


def test_the_steps_have_the_same_schemas() -> None:
    assert {"INVENTORY": INVENTORY, "IMAGE_INFO": IMAGE_INFO, "REJECTS": REJECTS} == {
        "INVENTORY": schemas.INVENTORY,
        "IMAGE_INFO": schemas.IMAGE_INFO,
        "REJECTS": schemas.REJECTS,
    }


STREAM = """
import re, sys
from pathlib import Path
from orchard.run.row_files import query_rows

def peak_mb():
    # Not ru_maxrss, which starts at the memory of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

query = "SELECT range AS number, repeat('x', 100) || range AS text FROM range($rows)"
before, rows = peak_mb(), 0
with query_rows(Path(sys.argv[1]), query, {"rows": 10_000_000}) as batches:
    for batch in batches:
        rows += batch.num_rows
print(rows, peak_mb() - before)
"""


def test_the_rows_of_a_query_are_streamed(tmp_path: Path) -> None:
    """The result takes 1.1 GB."""
    environment = {**os.environ, "PYTHONPATH": str(Path(row_files.__file__).parents[2])}
    command = [sys.executable, "-c", STREAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows, grown_mb = done.stdout.split()
    assert int(rows) == 10_000_000
    assert float(grown_mb) < 600
