"""A checkpoint in a file, of whichever form."""

from __future__ import annotations

import abc
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Union

import numpy as np

Values = Iterable[tuple[str, Union[np.ndarray, None]]]


class DamagedError(ValueError):
    """A file is not what it should be; the message says what is wrong."""


class Tensor(NamedTuple):
    """The kind of a tensor in a file, without its values.

    Attributes:
        shape: Its shape.
        dtype: Its type; None for what is not numbers, such as strings.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of its bytes, as far as that is known."""
        return self.size * (self.dtype.itemsize if self.dtype else 1)

    @property
    def is_float(self) -> bool:
        """Whether it is averaged: floating point, complex included."""
        return self.dtype is not None and (
            self.dtype.kind in "fc"
            or self.dtype.name.startswith(("bfloat", "float"))
        )

    def __str__(self) -> str:
        if self.dtype is None:
            return "(string)"
        return f"({self.dtype.name}, {list(self.shape)})"


class Checkpoint(abc.ABC):
    """A checkpoint, opened: its tensors are known, their values not yet read.

    Attributes:
        path: The path that users give.
        form: The kind of file, in words.
        tensors: All tensors, by their key in the file.
        slots: Keys of what belongs to optimizers; files may differ in them.
        state: Keys of floats that are no weights.
        guessed: Keys in `slots` or `state` that only look like it.
        batch_norm: Keys of batch-norm statistics.
    """

    form: str

    def __init__(self, path: str) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.slots: set[str] = set()
        self.state: set[str] = set()
        self.guessed: set[str] = set()
        self.batch_norm: set[str] = set()

    def name(self, key: str) -> str:
        """Returns the key as it is shown to users."""
        return key

    @abc.abstractmethod
    def read(self, keys: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields the values of some tensors, one after the other.

        The file is open only as long as the iterator lives.

        Raises:
            DamagedError: If one cannot be read or its checksum is wrong.
        """

    @abc.abstractmethod
    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        """Writes a copy of this checkpoint with other values.

        Args:
            path: The new local path, in a folder for scratch files.
            values: What the copy has: each key and its new value; None stands
                for the value that it has in this checkpoint.
            dropped: All other keys.

        Raises:
            OSError: If it cannot be written.
        """
