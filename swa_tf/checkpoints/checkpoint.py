"""A checkpoint in a file, of whichever form."""

from __future__ import annotations

import abc
import contextlib
import math
import os
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, Union

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from swa_tf.checkpoints import paths
from swa_tf.support import atomic_files, checks

try:
    from lzma import LZMAError
except ImportError:  # Python can be built without it; then none is raised
    LZMAError = zlib.error  # type: ignore[assignment,misc]

_T = TypeVar("_T")

Values = Iterable[tuple[str, Union[np.ndarray, None]]]


class DamagedError(ValueError):
    """The error of a checkpoint that is damaged, which says how."""


def groups(
    items: Iterable[_T], size: Callable[[_T], int], at_most: int
) -> Iterator[list[_T]]:
    """Yields groups of items, each of size `at_most` in all or of one item."""
    group: list[_T] = []
    total = 0
    for item in items:
        if group and total + size(item) > at_most:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    yield group


class Tensor(NamedTuple):
    """The shape and type of a tensor in a file, without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None  # None for other things than numbers

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of its bytes, as far as that is known."""
        return self.size * (self.dtype.itemsize if self.dtype else 1)

    @property
    def is_float(self) -> bool:
        """Whether it is averaged: floating point, complex included."""
        return self.dtype is not None and (
            self.dtype.kind in "fc" or "float" in self.dtype.name
        )

    def __str__(self) -> str:
        if self.dtype is None:
            return "(string)"
        return f"({self.dtype.name}, {list(self.shape)})"


class Kinds(NamedTuple):
    """The keys of tensors that are not averaged, or that need a refit."""

    slots: set[str]  # the state of optimizers
    state: set[str]  # other floats that are no weights
    guessed: set[str]  # those of both for their names or shapes alone
    batch_norm: set[str]  # batch-norm statistics


class SavedAverage(NamedTuple):
    """A `WeightAverage` in a checkpoint."""

    keys: list[str]  # of its averages, in their order
    names: list[str]  # of the variables that they are of
    n_models: int
    swapped: bool  # whether it was written inside `averaged_weights`
    kind: str | None  # the name of the class; old files do not say it
    layout: dict[str, Any]


class Checkpoint(abc.ABC):
    """A checkpoint whose tensors are known, and their values not yet read.

    Args:
        path: Its path.
        argument: The argument that named it, for errors.

    Attributes:
        form: The kind of file, in words.
        files: The files that it lies in; the main one is last.
        tensors: All tensors, by their key in the file.
        kinds: Which of them are no weights.
        places: The places of keys that differ between processes.
    """

    form: str
    tensors: dict[str, Tensor]
    kinds: Kinds

    def __init__(self, path: str, argument: str) -> None:
        self.path, self._argument = path, argument
        self.files = paths.files(path)
        self.places: dict[str, tuple[int, int]] = {}
        if not self.files:
            wanted = "be checkpoints that exist"
            raise checks.must(argument, wanted, f"'{path}'", FileNotFoundError)
        with self.errors_named("it cannot be opened"):
            for file in self.files:
                remote = atomic_files.is_remote(file)
                # To read a pipe would never end.
                if not (remote or stat.S_ISREG(os.stat(file).st_mode)):
                    raise self.damaged(f"{os.path.basename(file)} is no file")
        main = path if paths.suffix(path) else f"{path}.index"
        if self.files[-1] not in (path, main):
            raise self.damaged(f"{os.path.basename(main)} is missing")

    def damaged(self, how: str) -> Exception:
        """Returns the error to raise for this checkpoint."""
        received = f"'{self.path}': {how}"
        wanted = "be whole checkpoints"
        return checks.must(self._argument, wanted, received, DamagedError)

    @contextlib.contextmanager
    def errors_named(self, what: str) -> Iterator[None]:
        """Turns what TensorFlow, h5py and zipfile raise into that error."""
        try:
            yield
        except DamagedError:
            raise
        except (
            AttributeError,
            DecodeError,
            EOFError,
            LookupError,
            LZMAError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            tf.errors.OpError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            reason = atomic_files.reason(error)
            raise self.damaged(f"{what}: {reason}") from error

    def name(self, key: str) -> str:
        """Returns a key as it is shown to users."""
        return key

    def twins(self, other: Any) -> dict[str, str]:
        """Returns the keys of another checkpoint by the same tensors' here."""
        mine, its = self.places, other.places
        if mine.keys() == its.keys():
            mine = its = {}
        keys = {its.get(key, key): key for key in other.tensors}
        places = {key: mine.get(key, key) for key in self.tensors}
        return {k: keys[place] for k, place in places.items() if place in keys}

    def saved_averages(self) -> list[SavedAverage]:
        """Returns each `WeightAverage` that it holds."""
        return []

    @abc.abstractmethod
    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields some keys and their values, or raises a DamagedError.

        It does not hold a value any more when it reads the next one.
        """

    @abc.abstractmethod
    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        """Writes a copy with other values; None keeps the value it has here.

        The folder of `path` is for scratch files; `dropped` has all other keys.
        """
