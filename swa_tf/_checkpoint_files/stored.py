"""Tensors that lie in files, read piece by piece."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union

import numpy as np

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

    def pieces(self) -> Iterator[np.ndarray]:
        """Flat arrays, in order.

        Raises:
            DamagedError: Before the last one, if the checksum is wrong.
        """
        if self.check is not None:
            self.check()
        crc32c, end = 0, self.offset + self.nbytes
        for start in range(self.offset, end, PIECE):
            piece = read(self.file, start, min(PIECE, end - start))
            if self.crc32c is not None:
                crc32c = extended(crc32c, piece)
                if start + PIECE >= end and crc32c != self.crc32c:
                    raise DamagedError(
                        f"the checksum of bytes {self.offset} to {end} of "
                        f"{os.path.basename(self.file)} is wrong"
                    )
            if self.seen is not None:
                self.seen(start, piece)
            yield piece if self.dtype is None else piece.view(self.dtype)


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

    def pieces(self) -> Iterator[np.ndarray]:
        """Flat arrays, in order, as long as those of `Stored`."""
        flat = np.ascontiguousarray(self.load()).reshape(-1)
        step = PIECE // flat.itemsize
        for start in range(0, flat.size, step):
            yield flat[start : start + step]


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


def extended(crc32c: int, data: Any) -> int:
    """The checksum of all before and `data`, read-only bytes; 0 of nothing."""
    import google_crc32c  # on first use: `import swa_tf` needs it not

    return int(google_crc32c.extend(crc32c, data))


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
