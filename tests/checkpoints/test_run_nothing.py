"""Reading unpickles nothing, and runs nothing that is in a file."""

import builtins
import encodings.cp437  # zipfile does on first use  # noqa: F401
import json
import marshal
import os
import pathlib
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import checkpoint_files
from tests.checkpoint_files import (
    FORMS,
    H5,
    KERAS,
    WEIGHTS,
)
from tests.damage import (
    hdf5,
)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


MALICIOUS = pickle.dumps(Malicious())
MALICIOUS_TEXT = pickle.dumps(Malicious(), 0).decode()


@pytest.fixture
def nothing_runs(monkeypatch):
    """Lets all that could run what is in a file fail."""

    def fail(*args, **kwargs):
        raise SystemError("this would run what is in a file")

    for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"):
        monkeypatch.setattr(pickle, name, fail)
    for name in ("load", "loads"):
        monkeypatch.setattr(marshal, name, fail)
    for name in ("load_model", "model_from_json", "model_from_config"):
        if hasattr(tf.keras.models, name):
            monkeypatch.setattr(tf.keras.models, name, fail)
    for name in ("deserialize_keras_object", "load_model", "load_weights"):
        for module in (tf.keras.utils, getattr(tf.keras, "saving", None)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(tf.keras.layers, "deserialize", fail)
    monkeypatch.setattr(tf.keras.Model, "from_config", fail)
    monkeypatch.setattr(np, "load", fail)
    with monkeypatch.context() as patched:
        for name in ("eval", "exec"):
            patched.setattr(builtins, name, fail)
        yield


def malicious_hdf5(file):
    content = np.void(MALICIOUS)
    file.attrs["model_config"] = content
    file.attrs["more"] = content
    file.create_group("pickled").attrs["weight_names"] = content
    strings = file.create_dataset("pickled/string", (), h5py.string_dtype())
    strings[()] = MALICIOUS_TEXT
    file["pickled/bytes"] = np.frombuffer(content.tobytes(), np.uint8)


def malicious_config(rng, path):
    """A Lambda layer, and members that are pickles."""
    code = MALICIOUS_TEXT
    layer = {
        "class_name": "Lambda",
        "config": {"name": "evil", "function": [code, None, None]},
        "registered_name": None,
        "module": "keras.layers",
    }
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"] = [layer, *config["config"]["layers"]]
    members["config.json"] = json.dumps(config).encode()
    members["custom_objects.pkl"] = MALICIOUS
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("form", "damage"),
    [
        (WEIGHTS, hdf5(malicious_hdf5)),
        (H5, hdf5(malicious_hdf5)),
        (KERAS, hdf5(malicious_hdf5)),
        (KERAS, malicious_config),
    ],
)
@pytest.mark.parametrize("slots", ["keep", "drop"])
def test_what_is_in_a_file_is_not_run(
    form, damage, slots, three, tmp_path, nothing_runs
):
    paths = three(form)
    for path in paths:
        damage(None, path)
    output = os.fspath(tmp_path / f"average{form}")
    report = swa_tf.average_checkpoints(paths, output, optimizer_slots=slots)
    assert len(report["averaged"]) == 6  # of a dense layer and batch norm
    assert os.path.isfile(output)


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_is_refused(form, tmp_path, nothing_runs):
    paths = [checkpoint_files.path_of(form, tmp_path, f"{i}") for i in range(2)]
    for path in paths:
        for file in checkpoint_files.files(form, path):
            pathlib.Path(file).write_bytes(MALICIOUS)
    output = checkpoint_files.path_of(form, tmp_path, "average")
    with pytest.raises(ValueError, match="must be whole checkpoints"):
        swa_tf.average_checkpoints(paths, output)
