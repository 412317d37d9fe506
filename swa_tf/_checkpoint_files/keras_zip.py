"""Keras's `.keras` files: a zip, whose member of weights is an HDF5 file."""

from __future__ import annotations

import copy
import pathlib
import shutil
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from swa_tf._checkpoint_files import checksums
from swa_tf._checkpoint_files.hdf5 import Averaged, Hdf5File
from swa_tf._checkpoint_files.stored import (
    PIECE,
    DamagedError,
    Stored,
    Tensor,
)

_WEIGHTS = "model.weights.h5"

# What zipfile raises about files that are damaged.
_ERRORS = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


class KerasFile(Hdf5File):
    """A `.keras` file: its member `model.weights.h5` has the weights.

    Each member has a checksum. That of the weights is computed piece by piece
    as they are read, so that they are read once, and compared by `check`. The
    others are compared when the file is opened.
    """

    form = ".keras file"

    def __init__(self, path: str) -> None:
        # Of each piece that was read, by where it begins: size and checksum.
        self._pieces: dict[int, tuple[int, int]] = {}
        self._checksum: int | None = None
        try:
            super().__init__(path)
        except DamagedError:
            if self._checksum is not None:
                self.check()  # a wrong one is why
            raise

    def check(self) -> None:
        """Reads what of the weights was not read, and compares the checksum.

        Raises:
            DamagedError: If it is wrong.
        """
        checksum, at, end = 0, self._offset, self._offset + self.size
        for start, (size, of_piece) in sorted(self._pieces.items()):
            for piece in self._bytes(at, start):
                checksum = zlib.crc32(piece.data, checksum)
            checksum = checksums.joined(
                checksum, of_piece, size, checksums.CRC32
            )
            at = start + size
        for piece in self._bytes(at, end):
            checksum = zlib.crc32(piece.data, checksum)
        if checksum != self._checksum:
            raise DamagedError(f"the checksum of {_WEIGHTS} is wrong")

    def write(
        self, path: pathlib.Path, averaged: Averaged, dropped: set[str]
    ) -> None:
        template = self.template(path.with_name("template"), averaged, dropped)
        with zipfile.ZipFile(self.path) as source:
            with zipfile.ZipFile(path, "w") as target:
                for member in source.infolist():
                    new = copy.copy(member)
                    if member.filename == _WEIGHTS:
                        new.file_size = template.size
                        with target.open(new, "w") as weights:
                            template.write_filled(weights, averaged)
                    else:
                        with source.open(member) as old:
                            with target.open(new, "w") as copied:
                                shutil.copyfileobj(old, copied)

    def _part(self) -> tuple[int, int]:
        try:
            with zipfile.ZipFile(self.path) as file:
                member = file.getinfo(_WEIGHTS)
                compressed = member.compress_type != zipfile.ZIP_STORED
                for each in file.infolist():
                    _check(file, each, whole=each is not member or compressed)
        except KeyError:
            raise DamagedError(f"it holds no {_WEIGHTS}") from None
        except DamagedError:
            raise
        except _ERRORS as error:
            raise DamagedError(f"it is no whole zip file: {error}") from error
        if compressed:
            raise DamagedError(
                f"its {_WEIGHTS} is compressed, which Keras does not do; "
                "load and save it with Keras"
            )
        with open(self.path, "rb") as opened:
            opened.seek(member.header_offset + 26)
            name, extra = struct.unpack("<HH", opened.read(4))
        self._checksum = member.CRC
        return member.header_offset + 30 + name + extra, member.file_size

    def _tensor(self, key: str, dataset: Any) -> Tensor:
        tensor = super()._tensor(key, dataset)
        if isinstance(tensor, Stored):
            return tensor._replace(seen=self._seen)
        return tensor

    def _seen(self, start: int, piece: np.ndarray) -> None:
        self._pieces[start] = piece.nbytes, zlib.crc32(piece.data)


def _check(file: zipfile.ZipFile, member: zipfile.ZipInfo, whole: bool) -> None:
    """Opens a member or reads it whole, when zipfile compares its checksum."""
    try:
        with file.open(member) as opened:
            while whole and opened.read(PIECE):
                pass
    except zipfile.BadZipFile as error:
        raise DamagedError(
            f"the checksum of {member.filename} is wrong"
        ) from error
