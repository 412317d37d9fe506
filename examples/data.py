"""Images for examples: scikit-learn's digits, MNIST, SVHN.

Files are checked: a mistake in one, or in a flag, is a `DataError` that says
which it is, what was wanted and what came.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from scipy.io import loadmat, matlab
from sklearn import datasets, model_selection

CLASSES = 10
NAMES = ["digits", "mnist", "svhn"]
_HELD_OUT = 0.25  # Of what comes in one part.
_SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
_UNREADABLE = (OSError, EOFError, LookupError, NotImplementedError, TypeError)
_UNREADABLE += (ValueError, zlib.error, matlab.MatReadError)

Pair = tuple[np.ndarray, np.ndarray]
"""Images, uint8 [n, height, width, channels], and labels, 0 to 9, [n]."""
Parts = tuple[Pair, Optional[Pair]]
"""The data to train on, and the data to hold out, if it is separate."""


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
    train, test = _read(dataset, data_dir)
    random = np.random.default_rng(seed)
    order = random.permutation(len(train[1]))
    if test is None:
        test, held_out = train, round(_HELD_OUT * len(order))
        tests, order = order[:held_out], order[held_out:]
    else:
        tests = random.permutation(len(test[1]))
    return (
        _some(train, order, train_size, "train_size"),
        _some(test, tests, test_size, "test_size"),
    )


def load_rows(
    dataset: str, data_dir: str | None, seed: int
) -> tuple[Pair, Pair]:
    """The same as rows of numbers, 0 to 1: [n, pixels], float32.

    All that there is, of which a quarter, with its share of each class, is
    held out.
    """
    parts = [part for part in _read(dataset, data_dir) if part is not None]
    images, labels = map(np.concatenate, zip(*parts))
    rows = images.reshape(len(images), -1).astype(np.float32) / images.max()
    arrays = model_selection.train_test_split(
        rows, labels, test_size=_HELD_OUT, stratify=labels, random_state=seed
    )
    return tuple(arrays[::2]), tuple(arrays[1::2])


def _read(dataset: str, data_dir: str | None) -> Parts:
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(
            f"`--data_dir` must be a folder. Received: --data_dir={data_dir}"
        )
    readers = {"digits": _digits, "mnist": _mnist, "svhn": _svhn}
    return readers[dataset](data_dir)


def _some(pair: Pair, order: np.ndarray, size: int | None, flag: str) -> Pair:
    if size is not None and size > len(order):
        raise DataError(
            f"`--{flag}` must be at most {len(order)}, the number of images "
            f"there are. Received: --{flag}={size}"
        )
    return pair[0][order[:size]], pair[1][order[:size]]


def _digits(data_dir: str | None) -> Parts:
    if data_dir is not None:
        raise DataError(
            "`--data_dir` must not be given with `--dataset=digits`, which "
            f"come with scikit-learn. Received: --data_dir={data_dir}"
        )
    digits = datasets.load_digits()
    return (digits.images.astype(np.uint8)[..., None], digits.target), None


def _mnist(data_dir: str | None) -> Parts:
    if data_dir is not None:
        test = _read_idx(data_dir, "t10k")
        if any(name.startswith("train-") for name in os.listdir(data_dir)):
            return _read_idx(data_dir, "train"), test
        return test, None
    try:
        (x, y), (test_x, test_y) = tf.keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises nothing narrower.
        raise DataError(
            "MNIST could not be downloaded: give `--data_dir` with "
            f"t10k-images-idx3-ubyte.gz and the like. Received: {error}"
        ) from error
    return (x[..., None], y), (test_x[..., None], test_y)


def _read_idx(data_dir: str, part: str) -> Pair:
    arrays = []
    for name, axes in (("images-idx3", 3), ("labels-idx1", 1)):
        path = os.path.join(data_dir, f"{part}-{name}-ubyte.gz")
        try:
            with gzip.open(path) as file:
                content = file.read()
            start = [0, 0, 8, axes]  # uint8, and how many axes there are.
            shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
            size = 4 + 4 * axes + math.prod(shape)
            if [*content[:4]] != start or len(content) != size:
                raise ValueError(
                    f"{len(content)} bytes from {[*content[:4]]} on, not "
                    f"{size} from {start} on, for the shape {shape}"
                )
        except _UNREADABLE as error:
            raise _damaged(path, "a file of MNIST, gzipped", error) from error
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
        arrays.append(values.reshape(shape))
    images, labels = arrays
    return _checked(path, images[..., None], labels, range(CLASSES))


def _svhn(data_dir: str | None) -> Parts:
    if data_dir is not None:
        paths = [os.path.join(data_dir, name) for name in _SVHN_FILES]
        return _read_mat(paths[0]), _read_mat(paths[1])
    wanted = f"`--data_dir` with {_SVHN_FILES[0]} and {_SVHN_FILES[1]}"
    try:
        import tensorflow_datasets

        train, test = tensorflow_datasets.load(
            "svhn_cropped",
            split=["train", "test"],
            batch_size=-1,
            as_supervised=True,
        )
    except ImportError as error:
        raise DataError(
            f"`--dataset=svhn` needs {wanted}, or the package "
            f"tensorflow_datasets. Received: neither ({error})"
        ) from error
    except Exception as error:  # What downloads raise has no common class.
        raise DataError(
            "tensorflow_datasets could not load svhn_cropped: give "
            f"{wanted}. Received: {error}"
        ) from error
    return tuple(map(np.asarray, train)), tuple(map(np.asarray, test))


def _read_mat(path: str) -> Pair:
    wanted = "a file of SVHN: uint8 'X' [32, 32, 3, n] and 'y' [n, 1]"
    try:
        arrays = loadmat(path, variable_names=["X", "y"])
        if missing := {"X", "y"} - arrays.keys():
            raise ValueError(f"no {' and no '.join(sorted(missing))} in it")
        x, y = np.asarray(arrays["X"]), np.asarray(arrays["y"])
        n = x.shape[-1] if x.ndim else 0
        if (
            x.dtype != np.uint8
            or x.shape != (32, 32, 3, n)
            or y.shape != (n, 1)
        ):
            raise ValueError(f"{x.dtype} {list(x.shape)} and {list(y.shape)}")
    except _UNREADABLE as error:
        raise _damaged(path, wanted, error) from error
    images = np.ascontiguousarray(np.moveaxis(x, -1, 0))
    # The labels are 1 to 10, and 10 is the digit 0.
    return _checked(path, images, y[:, 0], range(1, 11))


def _checked(path: str, images: Any, labels: Any, allowed: range) -> Pair:
    if not len(images) == len(labels) > 0 or not np.isin(labels, allowed).all():
        raise _damaged(
            path,
            f"a label, {allowed[0]} to {allowed[-1]}, for each image",
            f"{len(images)} images, {len(labels)} labels {np.unique(labels)}",
        )
    return images, labels.astype(np.int64) % CLASSES


def _damaged(path: str, wanted: str, came: object) -> DataError:
    return DataError(f"{path} must be {wanted}. Received: {came}")
