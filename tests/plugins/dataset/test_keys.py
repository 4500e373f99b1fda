from collections import Counter

import pytest

from orchard.dataset import keys
from orchard.dataset.keys import count_ignored, is_archived, is_image, is_unreadable, label, most_common_endings

STRANGE = ["images/a b/1.jpg", "images/Äpfel/#%41.PNG", "images/x+y&z/q?'\".WebP", "images/deep/er/still/1.bmp"]
UNREADABLE = ["images/a//b.jpg", "images/k/tab\t.jpg", "images/k/del\x7f.jpg", "images/k/new\nline.jpg", "k/nul\0.jpg"]
PARENTS = ["k/./1.jpg", "k/../1.jpg", "/1.jpg", "//1.jpg"]


@pytest.mark.parametrize("key", [*STRANGE, *UNREADABLE, "1.jpeg", "a.b/c.d.jpg", "k/a..jpg"])
def test_a_key_with_the_ending_of_an_image_is_an_image(key: str) -> None:
    assert is_image(key)


@pytest.mark.parametrize(
    "key", [".hidden.jpg", ".trash/1.jpg", "k/._1.jpg", "k/../1.jpg", "k/notes.txt", "k/", "k/jpg", "k/1.jpg/", ""]
)
def test_hidden_objects_and_other_endings_are_no_images(key: str) -> None:
    assert not is_image(key)


@pytest.mark.parametrize("key", [*UNREADABLE, *PARENTS])
def test_a_key_that_clients_of_object_stores_change_or_refuse_is_unreadable(key: str) -> None:
    assert is_unreadable(key)


@pytest.mark.parametrize("key", STRANGE)
def test_all_other_keys_are_readable(key: str) -> None:
    assert not is_unreadable(key)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://b/images/Kiwi/1.jpg", "Kiwi"),
        ("s3://b/images/a b/1.jpg", "a b"),
        ("s3://b/images/a//1.jpg", ""),
        ("s3://b/1.jpg", "b"),
    ],
)
def test_the_label_is_the_name_of_the_parent_folder(path: str, name: str) -> None:
    assert label(path) == name


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_object_in_an_archive_is_archived_until_it_is_restored(storage_class: str) -> None:
    assert is_archived(storage_class, restored=False)
    assert not is_archived(storage_class, restored=True)


@pytest.mark.parametrize(
    "storage_class",
    ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY", None],
)
def test_objects_of_other_storage_classes_are_not_archived(storage_class: str | None) -> None:
    assert not is_archived(storage_class, restored=False)


def test_objects_that_are_not_images_are_counted_by_their_last_ending_in_lower_case() -> None:
    names = ["a.HEIC", "b.heic", "c.Tif", "d.jpg.gz", "e.jpg.tmp", "f", "g.jpg", "h.JPG.jpg", ".DS_Store", "k.1 (2)"]
    counts: Counter[str] = Counter()
    count_ignored(counts, [f"k/{name}" for name in names] + ["k/", ".git/1.jpg", "k/.ipynb_checkpoints/1.jpg"])
    assert counts == {
        ".heic": 2,
        ".tif": 1,
        ".gz": 1,
        ".tmp": 1,
        "no ending": 1,
        "hidden": 3,
        "other endings": 1,
    }


def test_a_dataset_of_countless_endings_has_a_short_list() -> None:
    endings = {f".{number:03}": 1 for number in range(100)} | {".heic": 7, "other endings": 5}
    counted = most_common_endings(endings)
    assert len(counted) <= keys.ENDINGS_COUNTED + 1
    assert sum(counted.values()) == 112
    assert (next(iter(counted)), counted["other endings"]) == (".heic", 87)


def test_countless_endings_do_not_take_countless_memory() -> None:
    counts: Counter[str] = Counter()
    count_ignored(counts, (f"k/1.{number}" for number in range(3 * keys.MAX_ENDINGS)))
    count_ignored(counts, ["k/2.5", "k/1.heic"])
    assert len(counts) <= keys.MAX_ENDINGS + 1
    assert sum(counts.values()) == 3 * keys.MAX_ENDINGS + 2
    assert counts[".5"] == 2
