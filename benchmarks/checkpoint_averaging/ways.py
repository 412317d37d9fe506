"""The ways to read checkpoints and write one, each measured in a process.

Two of them are floors, which average nothing: plain reads bytes and writes as
many, library reads tensors and writes them. Keras's own loading averages and
writes nothing either.
"""

from __future__ import annotations

import glob
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.checkpoint_averaging.file_forms import (
    FORMS,
    VALUE,
    read,
    write,
)
from benchmarks.common import timing

Means = Mapping[str, np.ndarray]


def prepare(form: str, paths: Sequence[str], shape: tuple[int, int]) -> Means:
    """Writes checkpoints, and reads them: so they are in the page cache.

    Args:
        form: Of the files, one of `FORMS`.
        paths: Where to write them.
        shape: The number of weights in each, and the parameters of a weight.

    Returns:
        The float64 means of a sample of each weight, by its name in the files.
    """
    random, means = np.random.default_rng(0), {}
    model = _model(shape)
    for path in paths:
        for layer in model.layers[1:]:
            layer.kernel.assign(random.standard_normal((1, shape[1]), "f"))
        if form == "keras":
            model.save(path)
        elif form == "weights.h5":
            model.save_weights(path)
        else:
            arrays = enumerate(model.get_weights())
            write(form, path, {f"w{i}{VALUE}": array for i, array in arrays})
        for name, weight in read(form, path):
            means[name] = means.get(name, 0.0) + _sample(weight) / len(paths)
    return means


def _model(shape: tuple[int, int]) -> Any:
    import tensorflow as tf

    inputs = tf.keras.Input([1])
    kwargs = {"use_bias": False, "kernel_initializer": "zeros"}
    layers = [
        tf.keras.layers.Dense(shape[1], **kwargs) for _ in range(shape[0])
    ]
    return tf.keras.Model(inputs, [layer(inputs) for layer in layers])


def measure(
    way: str, form: str, paths: Sequence[str], means: Means
) -> tuple[float, int, int]:
    """Returns seconds, and the peak of memory in bytes before and after."""
    import tensorflow  # noqa: F401

    import swa_tf  # noqa: F401

    with tempfile.TemporaryDirectory(dir=os.path.dirname(paths[0])) as folder:
        output = os.path.join(folder, f"average{FORMS[form]}")
        before, start = timing.peak_memory(), time.perf_counter()
        WAYS[way](form, paths, output)
        seconds, peak = time.perf_counter() - start, timing.peak_memory()
        if "average" in way:
            check(form, output, means)
    return seconds, before, peak


def check(form: str, path: str, means: Means) -> None:
    """Raises an error unless a file holds the means, rounded."""
    found = {name: _sample(weight) for name, weight in read(form, path)}
    if found.keys() != means.keys() or not all(
        np.allclose(found[name], means[name], 2**-23, 1e-12) for name in means
    ):
        raise RuntimeError(f"{path} does not hold the means")


def _sample(weight: np.ndarray) -> np.ndarray:
    return weight.ravel()[::997].astype(np.float64)


def _plain_floor(form: str, paths: Sequence[str], output: str) -> None:
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        size = 0
        for name in glob.glob(f"{path}*"):
            with open(name, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    size += count
    with open(output, "wb", buffering=0) as file:
        for start in range(0, size, len(buffer)):
            file.write(buffer[: size - start])


def _library_floor(form: str, paths: Sequence[str], output: str) -> None:
    weights = {}
    for path in paths:
        for name, weight in read(form, path):
            weights[name] = weight
    write(form, output, weights)


def _load_with_keras(form: str, paths: Sequence[str], output: str) -> None:
    import tensorflow as tf

    if form == "keras":
        for path in paths:
            tf.keras.models.load_model(path)
        return
    weights = dict(read(form, paths[0]))
    model = _model((len(weights), max(w.size for w in weights.values())))
    for path in paths:
        model.load_weights(path)


def _average(form: str, paths: Sequence[str], output: str) -> None:
    import swa_tf

    swa_tf.average_checkpoints(paths, output)


def _average_naively(form: str, paths: Sequence[str], output: str) -> None:
    total: dict[str, np.ndarray] = {}
    for path in paths:
        for name, weight in read(form, path):
            if name not in total:
                total[name] = np.zeros(weight.shape)
            total[name] += weight
    n = len(paths)
    write(form, output, {k: (v / n).astype("f") for k, v in total.items()})


KERAS = "loading with Keras"
WAYS = {
    "floor: plain": _plain_floor,
    "floor: library": _library_floor,
    "average_checkpoints": _average,
    "naive average": _average_naively,
    KERAS: _load_with_keras,
}
