"""Run the exported MobileNetV2 over images, inside one task slot."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from orchard_spark.images import RgbPixels

# LiteRT is fastest at batches of 1 to 8, measured; one thread, because each task slot has one core.
BATCH_IMAGES = 8

Features = npt.NDArray[np.float32]


class WrongModel(ValueError):
    """The model file is not one that bootstrap/export_model.py wrote."""


def model_name(uri: str) -> str:
    """The model's name as it stands in the features table: the file's name without its ending.

    >>> model_name("s3://bucket/releases/1a2b/model/mobilenetv2-1.0-224-imagenet-6001306c.tflite")
    'mobilenetv2-1.0-224-imagenet-6001306c'
    """
    return PurePosixPath(uri).stem


class MobileNet:
    """A loaded model; `size_px` is the width and height of the square images that it takes."""

    def __init__(self, content: bytes) -> None:
        """Load the model from the bytes of a .tflite file.

        Raises:
            WrongModel: the bytes are no model, or one with other inputs or outputs.
        """
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=1)
        except ValueError as error:
            raise WrongModel(f"not a LiteRT model ({len(content)} bytes): {error}") from error
        (taken,), (given,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if taken["dtype"] != np.uint8 or given["dtype"] != np.float32 or len(taken["shape"]) != 4:
            raise WrongModel(
                f"takes {taken['dtype'].__name__} {taken['shape']}, gives {given['dtype'].__name__}; "
                "export one with bootstrap/export_model.py"
            )
        self._input, self._output = taken["index"], given["index"]
        self._batch_images = 0
        self.size_px = int(taken["shape"][1])

    def features(self, images: Iterable[RgbPixels]) -> Iterator[Features]:
        """Features [1280] of each image [size_px, size_px, 3], in order, each inferred once."""
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
    """The model, loaded once in a worker process, as Spark reuses the process for the following tasks.

    Raises:
        WrongModel: see `MobileNet`.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _loaded:
        _loaded.clear()
        _loaded[digest] = MobileNet(content)
    return _loaded[digest]
