"""Tensors that lie in files, read piece by piece."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union

import numpy as np

from swa_tf._checkpoint_files import checksums
from swa_tf._checkpoint_files.checksums import extended

PIECE = 1 << 20  # bytes: large enough to read fast, small enough for a cache


class DamagedError(ValueError):
    """A file that is not what it should be; says what is wrong with it."""


class Stored(NamedTuple):
    """A tensor that is a run of bytes in a file.

    Attributes:
        shape: Its shape.
        dtype: Its type; None for what is not numbers.
        file: The file.
        offset: Its first byte; the last index runs fastest.
        nbytes: How many bytes it has.
        crc32c: The checksum of these bytes, where the format carries it.
        check: Checks the bytes instead, where a checksum is of another kind.
        seen: Is shown each piece that is read, and where it begins, where a
            checksum is of more than this tensor.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    file: str
    offset: int
    nbytes: int
    crc32c: int | None = None
    check: Callable[[], None] | None = None
    seen: Callable[[int, np.ndarray], None] | None = None

    def readers(self) -> list[Callable[[], np.ndarray]]:
        """Functions that read a flat array each, one after the other's.

        They may be called in any order, and by several threads.

        Raises:
            DamagedError: By the last one called, if the checksum is wrong.
        """
        if self.check is not None:
            self.check()
        starts = range(self.offset, self.offset + self.nbytes, PIECE)
        read_already: dict[int, tuple[int, int]] = {}
        return [
            functools.partial(self._read, start, read_already, len(starts))
            for start in starts
        ]

    def _read(
        self, start: int, read_already: dict[int, tuple[int, int]], count: int
    ) -> np.ndarray:
        end = self.offset + self.nbytes
        piece = read(self.file, start, min(PIECE, end - start))
        if self.crc32c is not None:
            read_already[start] = piece.nbytes, extended(0, piece)
            # Of two threads that come to the end at once, both check.
            if len(read_already) == count and self.crc32c != _joined(
                read_already
            ):
                raise DamagedError(
                    f"the checksum of bytes {self.offset} to {end} of "
                    f"{os.path.basename(self.file)} is wrong"
                )
        if self.seen is not None:
            self.seen(start, piece)
        return piece if self.dtype is None else piece.view(self.dtype)


class Loaded(NamedTuple):
    """A tensor that its format's library must read, as a whole.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        load: Reads it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * (self.dtype or np.dtype("B")).itemsize

    def readers(self) -> list[Callable[[], np.ndarray]]:
        """As those of `Stored`, of arrays as long; the first reads it all."""
        step = PIECE // (self.dtype or np.dtype("B")).itemsize
        lock = threading.Lock()
        whole: list[np.ndarray] = []

        def read_at(start: int) -> np.ndarray:
            with lock:
                if not whole:
                    array = np.ascontiguousarray(self.load())
                    whole.append(array.reshape(-1))
            return whole[0][start : start + step]

        size = math.prod(self.shape)
        return [
            functools.partial(read_at, start) for start in range(0, size, step)
        ]


Tensor = Union[Stored, Loaded]


def read(file: str, offset: int, size: int) -> np.ndarray:
    """So many bytes of a file, as a read-only array."""
    piece = np.empty(size, np.uint8)
    with open(file, "rb") as opened:
        opened.seek(offset)
        count = opened.readinto(piece.data)
    if count != size:
        raise DamagedError(
            f"{os.path.basename(file)} ends at byte {offset + count} "
            f"and should go on to {offset + size}"
        )
    piece.flags.writeable = False
    return piece


def pieces(tensor: Tensor) -> Iterator[np.ndarray]:
    """A tensor's flat arrays, in order."""
    for reader in tensor.readers():
        yield reader()


def _joined(parts: dict[int, tuple[int, int]]) -> int:
    """The checksum of runs, each of a size and a checksum, by their starts."""
    whole = 0
    for _, (size, part) in sorted(parts.items()):
        whole = checksums.joined(whole, part, size, checksums.CRC32C)
    return whole


def as_bytes(piece: np.ndarray) -> np.ndarray:
    """The bytes of a flat array, as a read-only array."""
    raw = np.ascontiguousarray(piece).view(np.uint8)
    raw.flags.writeable = False
    return raw


def is_float(dtype: np.dtype[Any] | None) -> bool:
    """Whether tensors of this type are averaged; complex ones are too."""
    if dtype is None:
        return False
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))
