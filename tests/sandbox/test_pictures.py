from pathlib import Path

import numpy as np
from PIL import Image

from sandbox import pictures


def test_the_rendered_dataset_has_300_images_of_12_classes(tmp_path: Path) -> None:
    assert pictures.write_dataset(tmp_path) == 300
    assert {folder.name: len(list(folder.glob("*.jpg"))) for folder in tmp_path.iterdir()} == dict.fromkeys(
        pictures.CLASSES, 25
    )
    assert len(pictures.CLASSES) == 12


def test_an_image_is_a_100_pixel_jpeg_of_a_fruit_on_white(tmp_path: Path) -> None:
    pictures.write_dataset(tmp_path, per_class=1)
    for file in tmp_path.rglob("*.jpg"):
        with Image.open(file) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (100, 100), "RGB")
            pixels = np.asarray(image)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() > 240, f"{file}: the corners should be white"
        assert pixels[45:55, 45:55].mean() < 230, f"{file}: a fruit should be in the middle"


def test_equal_seeds_give_equal_images(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pictures.write_dataset(tmp_path / name, per_class=1, seed=seed)
    a, b, c = ({file.parent.name: file.read_bytes() for file in (tmp_path / name).rglob("*.jpg")} for name in "abc")
    assert a == b
    assert all(a[label] != c[label] for label in a)


def test_no_two_images_are_equal(tmp_path: Path) -> None:
    pictures.write_dataset(tmp_path, per_class=5)
    contents = {file.read_bytes() for file in tmp_path.rglob("*.jpg")}
    assert len(contents) == 60
