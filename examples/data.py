"""Images for examples: scikit-learn's digits, MNIST, SVHN.

What is read from files is checked: a mistake ends in a `DataError`, which says
which file or flag it was, what was wanted and what came.
"""

from __future__ import annotations

import gzip
import os
import zlib
from typing import Optional

import numpy as np
import scipy.io
import tensorflow as tf
from sklearn import datasets

CLASSES = 10
NAMES = ["digits", "mnist", "svhn"]
SVHN_SHAPE = (32, 32, 3)
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
HELD_OUT = 0.25  # Of a dataset that comes in one part.

Pair = tuple[np.ndarray, np.ndarray]
"""Images, uint8 [n, height, width, channels], and labels, 0 to 9, [n]."""
Parts = tuple[Pair, Optional[Pair]]
"""What to learn and what to hold out; None where there is but one part."""


class DataError(ValueError):
    """A mistake in the flags or the files, to be printed as it is."""


def load(
    dataset: str,
    data_dir: str | None,
    seed: int,
    train_size: int | None = None,
    test_size: int | None = None,
) -> tuple[Pair, Pair]:
    """Images to learn and to hold out, in random order, as many as wanted."""
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(
            f"`--data_dir` must be a folder. Received: --data_dir={data_dir}"
        )
    read = {"digits": _digits, "mnist": _mnist, "svhn": _svhn}[dataset]
    train, test = read(data_dir)
    order = np.random.default_rng(seed).permutation(len(train[1]))
    if test is None:
        n = round(HELD_OUT * len(order))
        test, order = (train[0][order[:n]], train[1][order[:n]]), order[n:]
    tests = np.random.default_rng(seed).permutation(len(test[1]))
    return (
        _some(train, order, train_size, "train_size"),
        _some(test, tests, test_size, "test_size"),
    )


def _some(pair: Pair, order: np.ndarray, size: int | None, flag: str) -> Pair:
    if size is not None and size > len(order):
        raise DataError(
            f"`--{flag}` must be at most {len(order)}, the images there are. "
            f"Received: --{flag}={size}"
        )
    return pair[0][order[:size]], pair[1][order[:size]]


def _digits(data_dir: str | None) -> Parts:
    if data_dir is not None:
        raise DataError(
            "`--data_dir` is for `--dataset=mnist` or `svhn`: the digits come "
            f"with scikit-learn. Received: --data_dir={data_dir}"
        )
    digits = datasets.load_digits()
    return (digits.images.astype(np.uint8)[..., None], digits.target), None


def _mnist(data_dir: str | None) -> Parts:
    if data_dir is None:
        try:
            parts = tf.keras.datasets.mnist.load_data()
        except Exception as error:  # Keras raises nothing narrower.
            raise DataError(
                "MNIST could not be downloaded: give `--data_dir`, a folder "
                f"with t10k-images-idx3-ubyte.gz and so on. Received: {error}"
            ) from error
        train, test = ((x[..., None], y) for x, y in parts)
        return train, test
    test = _read_idx(data_dir, "t10k")
    if any(name.startswith("train-") for name in os.listdir(data_dir)):
        return _read_idx(data_dir, "train"), test
    return test, None


def _read_idx(data_dir: str, part: str) -> Pair:
    """Images and labels: type and number of axes, the shape, the values."""
    arrays = []
    for name, axes in (("images-idx3", 3), ("labels-idx1", 1)):
        path = os.path.join(data_dir, f"{part}-{name}-ubyte.gz")
        try:
            with gzip.open(path) as file:
                content = file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise _unread(path, "a file of MNIST, gzipped", error) from error
        start = 4 + 4 * axes
        shape = np.frombuffer(content[4:start].ljust(4 * axes, b"\0"), ">u4")
        size = start + int(np.prod(shape.astype(object)))
        if content[:4] != bytes([0, 0, 8, axes]) or len(content) != size:
            wanted = f"bytes 0 0 8 {axes}, a shape, and as many values"
            came = f"{[*content[:4]]}, {shape.tolist()}, {len(content)} bytes"
            raise _unread(path, wanted, came)
        arrays.append(np.frombuffer(content, np.uint8, -1, start).reshape(shape))
    return _checked(path, arrays[0][..., None], arrays[1], 0)


def _svhn(data_dir: str | None) -> Parts:
    if data_dir is not None:
        paths = [os.path.join(data_dir, name) for name in SVHN_FILES]
        return _read_mat(paths[0]), _read_mat(paths[1])
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"`--dataset=svhn` needs `--data_dir`, with {SVHN_FILES[0]} and "
            f"{SVHN_FILES[1]} in it, or the package tensorflow_datasets. "
            f"Received: neither ({error})"
        ) from error
    try:
        train, test = tensorflow_datasets.load(
            "svhn_cropped",
            split=["train", "test"],
            batch_size=-1,
            as_supervised=True,
        )
    except Exception as error:  # Whatever a download and its reading raise.
        raise DataError(
            "tensorflow_datasets could not load svhn_cropped: give "
            f"`--data_dir`. Received: {error}"
        ) from error
    return tuple(map(np.asarray, train)), tuple(map(np.asarray, test))


# draft
