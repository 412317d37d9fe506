"""Keras's weight files: `.weights.h5`, `.h5`, and `.keras`, a zip with one."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import os
import pathlib
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from swa_tf._checkpoint_files import stored
from swa_tf._checkpoint_files.stored import (
    DamagedError,
    Loaded,
    Stored,
    Tensor,
    is_float,
)

_WEIGHTS = "model.weights.h5"
_OPTIMIZER = ("optimizer", "optimizer_weights")
_COMPRESSION = 1032  # the most that deflate, or any other filter, achieves

# What h5py and zipfile raise about files that are damaged.
_ERRORS = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)


class Hdf5File:
    """A file of Keras, opened: what it holds, not yet the values.

    Attributes:
        path: The file.
        form: What kind of file it is, in words.
        tensors: What it holds, by its path in the HDF5 file.
        slots: The keys of what belongs to the optimizer.
        state: The keys of floats that are no weights.
        batch_norm: The keys of batch-norm statistics.
    """

    form = "HDF5 file"

    def __init__(self, path: str) -> None:
        self.path = path
        self._offset, self._size = self._part()
        self.tensors: dict[str, Tensor] = {}
        with self._opened() as file:
            self._walk(file, "")
        self.slots = {
            key for key in self.tensors if key.split("/")[0] in _OPTIMIZER
        }
        self.state = {key for key in self.tensors if key.startswith("metrics/")}
        self.batch_norm = _batch_norm(self.tensors) - self.slots - self.state

    def name(self, key: str) -> str:
        """A key as it is shown."""
        return key

    def write(
        self,
        path: pathlib.Path,
        averaged: Mapping[str, Callable[[], Iterator[np.ndarray]]],
        dropped: set[str],
    ) -> None:
        """Writes it anew, with the pieces of some tensors replaced.

        `dropped` are the keys left out: all of the optimizer's, or none.
        """
        with open(self.path, "rb") as source, open(path, "wb") as target:
            source.seek(self._offset)
            shutil.copyfileobj(source, target, 1 << 20)
            target.truncate(self._size)
        if dropped:
            whole = path.with_name(f"whole-{path.name}")
            path.rename(whole)
            try:
                _copy_without_optimizer(whole, path)
            except _ERRORS as error:
                raise ValueError(
                    "`optimizer_slots` cannot be dropped from the newest of "
                    f"`inputs`, '{self.path}': {error}"
                ) from error
            whole.unlink()
        for key, tensor in Hdf5File(os.fspath(path)).tensors.items():
            if key not in averaged:
                continue
            if isinstance(tensor, Stored):
                with open(path, "r+b") as target:
                    target.seek(tensor.offset)
                    for piece in averaged[key]():
                        target.write(stored.as_bytes(piece).data)
            else:
                value = np.concatenate(list(averaged[key]()))
                with h5py.File(path, "r+") as opened:
                    dataset = opened[key]
                    dataset[...] = value.reshape(dataset.shape).view(
                        dataset.dtype
                    )

    def _part(self) -> tuple[int, int]:
        """Where in the file the HDF5 file begins, and its size."""
        return 0, os.path.getsize(self.path)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with open(self.path, "rb") as file:
            window = _Window(file, self._offset, self._size)
            try:
                with h5py.File(io.BufferedReader(window), "r") as opened:
                    yield opened
            except DamagedError:
                raise
            except _ERRORS as error:
                raise DamagedError(f"it is no whole HDF5 file: {error}") from (
                    error
                )

    def _walk(self, group: Any, path: str) -> None:
        for name in group:
            key = f"{path}{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise DamagedError(f"'{key}' is a link, where Keras has none")
            item = group[name]
            if h5py.h5o.get_info(item.id).rc > 1:
                raise DamagedError(f"'{key}' has another name as well")
            if isinstance(item, h5py.Group):
                self._walk(item, f"{key}/")
            elif isinstance(item, h5py.Dataset):
                self.tensors[key] = self._tensor(key, item)

    def _tensor(self, key: str, dataset: Any) -> Tensor:
        if dataset.is_virtual or dataset.external:
            raise DamagedError(
                f"'{key}' lies in another file, where Keras has none"
            )
        shape, dtype = dataset.shape, _numpy_dtype(dataset)
        if dtype is not None and dtype.kind == "V" and not is_float(dtype):
            raise DamagedError(
                f"'{key}' is of no known type; Keras 2 writes bfloat16 so, and "
                "cannot read it itself"
            )
        if shape is None or dtype is None:
            return Stored((), None, self.path, 0, 0)
        offset = dataset.id.get_offset()
        layout = dataset.id.get_create_plist().get_layout()
        if (
            offset is not None
            and layout == h5py.h5d.CONTIGUOUS
            and dtype.isnative
        ):
            if offset + dataset.nbytes > self._size:
                raise DamagedError(f"it ends before '{key}' does")
            offset += self._offset
            return Stored(shape, dtype, self.path, offset, dataset.nbytes)
        if dataset.nbytes > _COMPRESSION * self._size:
            raise DamagedError(f"'{key}' is larger than its file can hold")
        load = functools.partial(self._load, key, dtype)
        return Loaded(shape, dtype, load)

    def _load(self, key: str, dtype: np.dtype[Any]) -> np.ndarray:
        with self._opened() as file:
            return np.asarray(file[key][()]).view(dtype)


class KerasFile(Hdf5File):
    """A `.keras` file: a zip whose member `model.weights.h5` has the weights.

    Each member has a checksum; opening the file reads them all.
    """

    form = ".keras file"

    def write(
        self,
        path: pathlib.Path,
        averaged: Mapping[str, Callable[[], Iterator[np.ndarray]]],
        dropped: set[str],
    ) -> None:
        weights = path.with_name(_WEIGHTS)
        super().write(weights, averaged, dropped)
        with zipfile.ZipFile(self.path) as source:
            with zipfile.ZipFile(path, "w") as target:
                for member in source.infolist():
                    if member.filename == _WEIGHTS:
                        target.write(weights, _WEIGHTS)
                        continue
                    with source.open(member) as old:
                        with target.open(copy.copy(member), "w") as new:
                            shutil.copyfileobj(old, new)
        weights.unlink()

    def _part(self) -> tuple[int, int]:
        try:
            with zipfile.ZipFile(self.path) as file:
                damaged = file.testzip()
                member = file.getinfo(_WEIGHTS)
        except KeyError:
            raise DamagedError(f"it holds no {_WEIGHTS}") from None
        except (zipfile.BadZipFile, *_ERRORS) as error:
            raise DamagedError(f"it is no whole zip file: {error}") from error
        if damaged:
            raise DamagedError(f"the checksum of {damaged} is wrong")
        if member.compress_type != zipfile.ZIP_STORED:
            raise DamagedError(
                f"its {_WEIGHTS} is compressed, which Keras does not do; "
                "load and save it with Keras"
            )
        with open(self.path, "rb") as opened:
            opened.seek(member.header_offset + 26)
            name, extra = struct.unpack("<HH", opened.read(4))
        return member.header_offset + 30 + name + extra, member.file_size


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: Any, offset: int, size: int) -> None:
        self._file, self._offset, self._size = file, offset, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self._size - self._at, 0)]
        self._file.seek(self._offset + self._at)
        count = int(self._file.readinto(view))
        self._at += count
        return count


def _copy_without_optimizer(source: pathlib.Path, target: pathlib.Path) -> None:
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        for name, value in old.attrs.items():
            new.attrs[name] = value
        for name in old:
            if name not in _OPTIMIZER:
                old.copy(name, new)


def _numpy_dtype(dataset: Any) -> np.dtype[Any] | None:
    """The dtype; bfloat16 is marked as Keras does; None for strings."""
    if str(dataset.attrs.get("dtype")) == "bfloat16" and (
        dataset.dtype.itemsize == 2
    ):
        return np.dtype(tf.bfloat16.as_numpy_dtype)
    dtype: np.dtype[Any] = dataset.dtype
    return None if dtype.hasobject else dtype


def _batch_norm(tensors: dict[str, Any]) -> set[str]:
    """The batch-norm statistics.

    Older files name them. In newer ones they are the last two `vars` of a
    layer: of four vectors of one length, or of a layer that is called so.
    """
    found = {
        key
        for key in tensors
        if re.search(r"(^|/)moving_(mean|variance)(:0)?$", key)
    }
    layers: dict[str, list[str]] = {}
    for key in tensors:
        layer, _, variable = key.rpartition("/")
        if layer.split("/")[-1] == "vars" and variable.isdigit():
            layers.setdefault(layer, []).append(key)
    for layer, keys in layers.items():
        shapes = {tensors[key].shape for key in keys}
        alike = len(shapes) == 1 and len(*shapes) == 1
        if alike and (len(keys) == 4 or "batch_norm" in layer):
            found |= set(sorted(keys)[-2:])
    return found
