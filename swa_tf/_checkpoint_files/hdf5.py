"""Keras's files of weights: `.weights.h5` and `.h5`."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import h5py
import numpy as np
import tensorflow as tf

from swa_tf import _files
from swa_tf._checkpoint_files import stored
from swa_tf._checkpoint_files.stored import (
    DamagedError,
    Loaded,
    Stored,
    Tensor,
    is_float,
)

Averaged = Mapping[str, Callable[[], Iterator[np.ndarray]]]
"""The pieces of averages, by their keys."""

_OPTIMIZER = ("optimizer", "optimizer_weights")
_COMPRESSION = 1032  # the most that deflate, or any other filter, achieves

# What h5py raises about files that are damaged.
_ERRORS = (EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError)


class Hdf5File:
    """A file of Keras, opened: what it holds, not yet the values.

    Attributes:
        path: The file.
        size: That of the HDF5 file, in bytes.
        form: What kind of file it is, in words.
        tensors: What it holds, by its path in the HDF5 file.
        slots: The keys of what belongs to optimizers.
        state: The keys of floats that are no weights.
        guessed: Those of `slots` that only look like it.
        batch_norm: The keys of batch-norm statistics.
    """

    form = "HDF5 file"

    def __init__(self, path: str) -> None:
        self.path = path
        self._offset, self.size = self._part()
        self.tensors: dict[str, Tensor] = {}
        with self._opened() as file:
            self._walk(file, "")
        runs = self._runs()
        for (_, end, key), (start, _, other) in zip(runs, runs[1:]):
            if start < end:
                raise DamagedError(f"'{key}' and '{other}' lie in one place")
        named = {k for k in self.tensors if k.split("/")[0] in _OPTIMIZER}
        self.guessed = _optimizers(self.tensors) - named
        self.slots = named | self.guessed
        self.state = {key for key in self.tensors if key.startswith("metrics/")}
        self.batch_norm = _batch_norm(self.tensors) - self.slots - self.state

    def name(self, key: str) -> str:
        """A key as it is shown."""
        return key

    def write(
        self, path: pathlib.Path, averaged: Averaged, dropped: set[str]
    ) -> None:
        """Writes it anew, with the pieces of some tensors replaced.

        `dropped` are the keys left out.
        """
        template = self.template(path.with_name("template"), averaged, dropped)
        with open(path, "wb") as target:
            template.write_filled(target, averaged)

    def template(
        self, path: pathlib.Path, averaged: Averaged, dropped: set[str]
    ) -> Hdf5File:
        """A file whose `write_filled` writes the result.

        It is this one or, where more than runs of bytes must change, a copy at
        `path` in which that is done.
        """
        loaded = {k for k in averaged if isinstance(self.tensors[k], Loaded)}
        if not dropped and not loaded:
            return self
        if dropped:
            _files.reserve(path, self.size)
            try:
                with self._opened() as old, h5py.File(path, "w") as new:
                    self._copy(old, new, dropped)
            except _ERRORS as error:
                raise ValueError(
                    "`optimizer_slots` cannot be dropped from the newest of "
                    f"`inputs`, '{self.path}': {error}"
                ) from error
        else:
            with open(path, "wb") as target:
                self.write_filled(target, {})
        for key in loaded:
            # An empty tensor has no pieces.
            empty = np.empty(0, self.tensors[key].dtype)
            value = np.concatenate([empty, *averaged[key]()])
            with h5py.File(path, "r+") as file:
                whole = value.reshape(file[key].shape)
                if file[key].dtype.kind == "V":  # bfloat16
                    whole = whole.view(file[key].dtype)
                file[key][...] = whole  # in whatever type the file has
        return Hdf5File(os.fspath(path))

    def write_filled(self, target: IO[bytes], averaged: Averaged) -> None:
        """Writes its bytes, with those of the averages in their places."""
        at = self._offset
        for start, end, key in self._runs():
            if key in averaged:
                for piece in self._bytes(at, start):
                    target.write(piece.data)
                dtype = self.tensors[key].dtype  # in the file's byte order
                for piece in averaged[key]():
                    piece = piece.astype(dtype, copy=False)
                    target.write(stored.as_bytes(piece).data)
                at = end
        for piece in self._bytes(at, self._offset + self.size):
            target.write(piece.data)

    def _copy(self, old: Any, new: Any, dropped: set[str]) -> None:
        """Copies a group; those below it that would be empty are left out."""
        for name, value in old.attrs.items():
            new.attrs[name] = value
        for name in old:
            path = f"{old.name}/{name}".strip("/")
            below = {
                key for key in self.tensors if f"{key}/".startswith(f"{path}/")
            }
            if not below & dropped:
                old.copy(name, new)
            elif not below <= dropped:
                self._copy(old[name], new.create_group(name), dropped)

    def _runs(self) -> list[tuple[int, int, str]]:
        """Where tensors that are runs of bytes begin and end, in order."""
        return sorted(
            (tensor.offset, tensor.offset + tensor.nbytes, key)
            for key, tensor in self.tensors.items()
            if isinstance(tensor, Stored)
        )

    def _bytes(self, start: int, end: int) -> Iterator[np.ndarray]:
        run = Stored((), None, self.path, start, end - start)
        return stored.pieces(run)

    def _part(self) -> tuple[int, int]:
        """Where in the file the HDF5 file begins, and its size."""
        return 0, os.path.getsize(self.path)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with open(self.path, "rb") as file:
            window = _Window(file, self._offset, self.size)
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
        exact = h5py.h5t.py_create(dataset.dtype, logical=True)
        if (
            offset is not None
            and layout == h5py.h5d.CONTIGUOUS
            and dataset.id.get_type() == exact  # no type known to HDF5 alone
        ):
            if offset + dataset.nbytes > self.size:
                raise DamagedError(f"it ends before '{key}' does")
            offset += self._offset
            return Stored(shape, dtype, self.path, offset, dataset.nbytes)
        if dataset.nbytes > _COMPRESSION * self.size:
            raise DamagedError(f"'{key}' is larger than its file can hold")
        load = functools.partial(self._load, key, dtype)
        return Loaded(shape, dtype, load)

    def _load(self, key: str, dtype: np.dtype[Any]) -> np.ndarray:
        with self._opened() as file:
            value = np.asarray(file[key][()])
            return value.view(dtype) if value.dtype.kind == "V" else value


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: Any, offset: int, size: int) -> None:
        self._file, self._offset, self.size = file, offset, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self.size - self._at, 0)]
        self._file.seek(self._offset + self._at)
        count = int(self._file.readinto(view))
        self._at += count
        return count


def _numpy_dtype(dataset: Any) -> np.dtype[Any] | None:
    """The dtype; bfloat16 is marked as Keras does; None for strings."""
    dtype: np.dtype[Any] = dataset.dtype
    if dtype == "V2" and str(dataset.attrs.get("dtype")) == "bfloat16":
        return np.dtype(tf.bfloat16.as_numpy_dtype)
    return None if dtype.hasobject else dtype


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The keys of numbered tensors, `layers/dense/vars/0`, by their group."""
    groups: dict[str, dict[int, str]] = {}
    for key in tensors:
        group, _, number = key.rpartition("/")
        if group.split("/")[-1] == "vars" and number.isdigit():
            groups.setdefault(group, {})[int(number)] = key
    return {
        group: [key for _, key in sorted(numbered.items())]
        for group, numbered in groups.items()
    }


def _optimizers(tensors: Mapping[str, Tensor]) -> set[str]:
    """What looks like optimizers, which may be anywhere in a model.

    Such a group begins with the number of steps, an integer. All else in it is
    a scalar or has the shape of a weight, in Adafactor without one axis.
    """
    groups = _groups(tensors)
    counted = {
        group
        for group, keys in groups.items()
        if _is_count(tensors[keys[0]])
        and any(is_float(tensors[key].dtype) for key in keys)
    }
    shapes: set[tuple[int, ...]] = {()}
    for group in groups.keys() - counted:
        for shape in {tensors[key].shape for key in groups[group]}:
            shapes.add(shape)
            for axis in range(len(shape)):
                shapes.add(shape[:axis] + shape[axis + 1 :])
    return {
        key
        for group in counted
        if {tensors[key].shape for key in groups[group]} <= shapes
        for key in groups[group]
    }


def _is_count(tensor: Tensor) -> bool:
    dtype = tensor.dtype
    return dtype is not None and dtype.kind == "i" and tensor.shape == ()


def _batch_norm(tensors: Mapping[str, Tensor]) -> set[str]:
    """The batch-norm statistics.

    Older files name them. In newer ones they are the last two `vars` of a
    layer: of four vectors of one length, or of a layer that is called so.
    """
    found = {
        key
        for key in tensors
        if re.search(r"(^|/)moving_(mean|variance)(:0)?$", key)
    }
    for layer, keys in _groups(tensors).items():
        shapes = {tensors[key].shape for key in keys}
        alike = len(shapes) == 1 and len(*shapes) == 1
        if alike and (len(keys) == 4 or "batch_norm" in layer):
            found |= set(keys[-2:])
    return found
