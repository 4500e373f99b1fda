"""Run the exported MobileNetV2 on images, in one task slot."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from orchard_spark.images import RgbPixels

# In measurements, LiteRT was fastest with batches of 1 to 8 images. It runs in one thread: a task slot has one core.
BATCH_IMAGES = 8

Features = npt.NDArray[np.float32]


class WrongModel(ValueError):
    """The model file was not written by model/export.py."""


def model_name(uri: str) -> str:
    """Return the model's name in the features table: the file name without its extension.

    >>> model_name("s3://bucket/releases/1a2b/model/mobilenetv2-1.0-224-imagenet-6001306c.tflite")
    'mobilenetv2-1.0-224-imagenet-6001306c'
    """
    return PurePosixPath(uri).stem


class MobileNet:
    """A loaded model; `size_px` is the width and height of its input images."""

    def __init__(self, content: bytes) -> None:
        """Load the model from the bytes of a .tflite file.

        Raises:
            WrongModel: the bytes are not a model, or its inputs or outputs differ from the exported model's.
        """
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=1)
        except ValueError as error:
            raise WrongModel(f"not a LiteRT model ({len(content)} bytes): {error}") from error
        (pixels,), (features,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if pixels["dtype"] != np.uint8 or features["dtype"] != np.float32 or len(pixels["shape"]) != 4:
            raise WrongModel(
                f"the model's input is {pixels['dtype'].__name__} {pixels['shape']} and its output "
                f"{features['dtype'].__name__}, not images as uint8 and features as float32: use the model that "
                "`make release-parts` exports (model/export.py)"
            )
        self._input, self._output = pixels["index"], features["index"]
        self._batch_images = 0
        self.size_px = int(pixels["shape"][1])

    def features(self, images: Iterable[RgbPixels]) -> Iterator[Features]:
        """Yield the features [1280] of each image [size_px, size_px, 3], in order, with one inference per image."""
        batch: list[RgbPixels] = []
        for image in images:
            batch.append(image)
            if len(batch) == BATCH_IMAGES:
                yield from self._infer(np.stack(batch))
                batch.clear()
        if batch:
            yield from self._infer(np.stack(batch))

    def _infer(self, pixels: RgbPixels) -> Features:
        if len(pixels) != self._batch_images:
            self._interpreter.resize_tensor_input(self._input, pixels.shape)
            self._interpreter.allocate_tensors()
            self._batch_images = len(pixels)
        self._interpreter.set_tensor(self._input, pixels)
        self._interpreter.invoke()
        return np.array(self._interpreter.get_tensor(self._output))


_loaded: dict[str, MobileNet] = {}


def load(content: bytes) -> MobileNet:
    """Return the model, loaded once per worker process: Spark reuses the process for its next tasks.

    Raises:
        WrongModel: see `MobileNet`.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _loaded:
        _loaded.clear()
        _loaded[digest] = MobileNet(content)
    return _loaded[digest]
