"""The forms of checkpoint files, read and written with their own libraries.

TensorFlow is imported only in the processes that are measured.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

FORMS = {"checkpoint": "", "weights.h5": ".weights.h5", "keras": ".keras"}
"""From the name of a form to the ending of its files."""
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
"""The ending of the keys that TensorFlow gives to variables."""
_MEMBER = "model.weights.h5"


def read(form: str, path: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and values, one at a time."""
    if form == "checkpoint":
        import tensorflow as tf

        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            if name.endswith(VALUE):
                yield name, reader.get_tensor(name)
    elif form == "keras":
        with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
            yield from read("weights.h5", member)
    else:
        names: list[str] = []
        with h5py.File(path, "r") as file:
            file.visit(names.append)
            for name in names:
                if isinstance(file[name], h5py.Dataset):
                    yield name, file[name][()]


def write(form: str, path: str, weights: Mapping[str, np.ndarray]) -> None:
    """Writes what `read` gave, and of a `.keras` file nothing else."""
    if form == "checkpoint":
        import tensorflow as tf

        tensors = {k[: -len(VALUE)]: tf.Variable(v) for k, v in weights.items()}
        tf.train.Checkpoint(**tensors).write(path)
        return
    hdf5 = path if form == "weights.h5" else f"{path}.h5"
    with h5py.File(hdf5, "w") as file:
        for name, weight in weights.items():
            file[name] = weight
    if form == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(hdf5, _MEMBER)
