"""The files of CIFAR-10: three formats, read without running code.

The standard binary batches are read with numpy, the standard python batches
(which are pickles) with an unpickler that knows arrays and nothing else, the
JPEG archive with pickling off. Without a directory, Keras downloads.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.common.errors import BenchmarkError

SHAPE = (32, 32, 3)
CLASSES = 10
JPEG_FILE = "cifar10_jpeg.npz"
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCHES = ("test_batch",)
_PIXELS = 32 * 32 * 3

Pair = tuple[np.ndarray, np.ndarray]
"""Images, uint8 [n, 32, 32, 3], and labels, int32 [n]."""


def read(data_dir: str | None) -> tuple[Pair, Pair]:
    """Reads the training and the test images of CIFAR-10.

    Args:
        data_dir: A directory that holds `cifar10_jpeg.npz`, the files
            `data_batch_1.bin` to `test_batch.bin`, or `data_batch_1` to
            `test_batch`; the last two also in the directory that their
            archive unpacks to. The first format found is read. None
            downloads through Keras.

    Returns:
        ((images, labels) for training, (images, labels) for test).

    Raises:
        BenchmarkError: If files are missing or damaged, or if the download
            fails.
    """
    if data_dir is None:
        return _download()
    jpeg = os.path.join(data_dir, JPEG_FILE)
    if os.path.exists(jpeg):
        return read_jpeg_archive(jpeg)
    formats: Sequence[tuple[str, str, Callable[[str], Pair]]] = (
        (".bin", "cifar-10-batches-bin", read_binary_batch),
        ("", "cifar-10-batches-py", read_python_batch),
    )
    for suffix, unpacked, read in formats:
        for directory in (data_dir, os.path.join(data_dir, unpacked)):
            names = [name + suffix for name in TRAIN_BATCHES + TEST_BATCHES]
            paths = [os.path.join(directory, name) for name in names]
            missing = [path for path in paths if not os.path.isfile(path)]
            if len(missing) == len(paths):
                continue
            if missing:
                raise BenchmarkError(
                    "`--data_dir` must hold all six batches of CIFAR-10. "
                    f"Missing: {', '.join(missing)}"
                )
            pairs = [read(path) for path in paths]
            return _joined(pairs[:-1]), pairs[-1]
    raise BenchmarkError(
        f"`--data_dir` must hold {JPEG_FILE}, or data_batch_1.bin to "
        "data_batch_5.bin and test_batch.bin, or data_batch_1 to "
        f"data_batch_5 and test_batch. Received: --data_dir={data_dir}"
    )


def read_binary_batch(path: str) -> Pair:
    """Reads a file of the binary version: a label, 3072 bytes, and so on.

    Raises:
        BenchmarkError: If the file is not of that form.
    """
    values = np.fromfile(path, np.uint8)
    record = 1 + _PIXELS
    if values.size == 0 or values.size % record:
        raise _damaged(
            path, f"its size must be a multiple of {record}, not {values.size}"
        )
    records = values.reshape(-1, record)
    return _checked(path, records[:, 1:], records[:, 0])


def read_python_batch(path: str) -> Pair:
    """Reads a file of the python version, a pickle, without running code.

    The unpickler knows lists, dictionaries, numbers, strings and arrays of
    numbers. A pickle that names anything else, as a malicious one must, is
    refused before the thing named is imported or called.

    Raises:
        BenchmarkError: If the file is not of that form.
    """
    with open(path, "rb") as file:
        try:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        except _UNREADABLE as error:
            raise _damaged(path, str(error)) from error
    if not isinstance(batch, dict):
        raise _damaged(path, f"it must hold a dict, not {type(batch).__name__}")
    pair = [batch.get(key, batch.get(key.encode())) for key in _PYTHON_KEYS]
    for key, value in zip(_PYTHON_KEYS, pair):
        if value is None:
            raise _damaged(path, f"it must hold the key {key!r}")
    return _checked(path, *pair)


def read_jpeg_archive(path: str) -> tuple[Pair, Pair]:
    """Reads the archive of all images as JPEG files, one after another.

    For each split of `train` and `test` it holds `<split>_bytes`, uint8;
    `<split>_offsets`, int64 [n + 1], where image i is
    `bytes[offsets[i]:offsets[i + 1]]`; and `<split>_labels`, uint8 [n].

    Raises:
        BenchmarkError: If the file is not of that form.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    train, test = (_decoded(path, arrays, name) for name in ("train", "test"))
    return train, test


_PYTHON_KEYS = ("data", "labels")
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
)
# Numpy's own way to say how its arrays are pickled; no private name is used.
_RECONSTRUCT = np.empty(0, np.uint8).__reduce__()[0]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Encodes as Python 3 does for bytes in pickles of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and basic values; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, and only arrays are allowed"
            ) from None


def _decoded(path: str, arrays: dict[str, np.ndarray], split: str) -> Pair:
    """Decodes one split of the JPEG archive."""
    keys = [f"{split}_{part}" for part in ("bytes", "offsets", "labels")]
    for key in keys:
        if key not in arrays:
            raise _damaged(path, f"it must hold the key {key!r}")
    content, offsets, labels = (arrays[key] for key in keys)
    if (
        content.dtype != np.uint8
        or not np.issubdtype(offsets.dtype, np.integer)
        or offsets.shape != (len(labels) + 1,)
        or np.any(np.diff(offsets) < 0)
        or offsets[0] < 0
        or offsets[-1] > len(content)
    ):
        raise _damaged(path, f"{keys[1]!r} must point into {keys[0]!r}")
    data = content.tobytes()
    images = np.empty((len(labels), *SHAPE), np.uint8)
    for i in range(len(labels)):
        try:
            image = tf.io.decode_jpeg(
                data[offsets[i] : offsets[i + 1]],
                channels=3,
                dct_method="INTEGER_ACCURATE",
            )
        except tf.errors.InvalidArgumentError as error:
            raise _damaged(
                path, f"image {i} of {split!r} is no JPEG"
            ) from error
        if image.shape != SHAPE:
            raise _damaged(
                path, f"image {i} of {split!r} has the shape {image.shape}"
            )
        images[i] = image.numpy()
    return images, _checked_labels(path, labels)


def _checked(path: str, pixels: Any, labels: Any) -> Pair:
    """Returns images from planes of red, green, blue, and checked labels."""
    pixels = np.asarray(pixels)
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
    ):
        raise _damaged(
            path,
            f"its images must be uint8 [n, {_PIXELS}], not {pixels.dtype} "
            f"{list(pixels.shape)}",
        )
    checked = _checked_labels(path, labels)
    if len(checked) != len(pixels):
        raise _damaged(path, f"{len(pixels)} images, {len(checked)} labels")
    planes = pixels.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), checked


def _checked_labels(path: str, labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise _damaged(path, "its labels must be a list of whole numbers")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise _damaged(
            path,
            f"its labels must be 0 to {CLASSES - 1}, not "
            f"{labels.min()} to {labels.max()}",
        )
    return labels.astype(np.int32)


def _joined(pairs: Sequence[Pair]) -> Pair:
    images, labels = zip(*pairs)
    return np.concatenate(images), np.concatenate(labels)


def _download() -> tuple[Pair, Pair]:
    try:
        train, test = tf.keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises nothing narrower.
        raise BenchmarkError(
            f"CIFAR-10 could not be downloaded ({error}). Give the directory "
            "of a copy with `--data_dir`, or use `--dataset=digits`, which "
            "needs no download."
        ) from error
    return _flat(*train), _flat(*test)


def _flat(images: np.ndarray, labels: np.ndarray) -> Pair:
    return images, labels.reshape(-1).astype(np.int32)


def _damaged(path: str, why: str) -> BenchmarkError:
    return BenchmarkError(f"{path} cannot be read: {why}")
