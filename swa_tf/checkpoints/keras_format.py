"""Keras's files: `.weights.h5`, `.h5`, and what holds or lists such files."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import pathlib
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from swa_tf.checkpoints import paths, tensor_kinds
from swa_tf.checkpoints.checkpoint import (
    Checkpoint,
    Tensor,
    Values,
)
from swa_tf.support import atomic_files

_WEIGHTS = "model.weights.h5"
_MAX_COMPRESSION = 1032  # no filter, such as deflate, achieves more
_COPIED_AT_ONCE = 1 << 20  # bytes


class Hdf5Checkpoint(Checkpoint):
    """An HDF5 file; the keys are paths in it."""

    form = "HDF5 file"

    def __init__(self, path: str, argument: str) -> None:
        super().__init__(path, argument)
        self._place = self._found()
        self.tensors = {}
        extents: list[tuple[int, int, str]] = []
        with self._opened() as file:
            for key, dataset in self._datasets(file):
                self.tensors[key] = self._tensor(key, dataset)
                start = dataset.id.get_offset()
                if start is not None:
                    end = start + dataset.id.get_storage_size()
                    extents.append((start, end, key))
            self.places = _places(file)
        extents.sort()
        for (_, end, key), (start, _, other) in zip(extents, extents[1:]):
            if start < end:
                raise self.damaged(f"'{key}' and '{other}' lie in one place")
        self.kinds = tensor_kinds.of_keras(self.tensors)

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        with self._opened() as file:
            for key in keys:
                value = np.asarray(file[key][()])
                if value.dtype.kind == "V":  # as HDF5 stores bfloat16
                    value = value.view(tf.bfloat16.as_numpy_dtype)
                yield key, value
                del value  # before the next one is read

    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        self.copy(path, dropped)
        with h5py.File(path, "r+") as file:
            _assign(values, lambda key: file)

    def copy(self, path: pathlib.Path, dropped: set[str]) -> None:
        """Writes a copy of the HDF5 file without some keys."""
        if not dropped:
            with self._part() as part, open(path, "wb") as copied:
                shutil.copyfileobj(part, copied, _COPIED_AT_ONCE)
            return
        with self._part() as part:
            atomic_files.reserve(path, part.seek(0, io.SEEK_END))
        with self._opened() as old, h5py.File(path, "w") as new:
            _copy(old, new, self.tensors.keys(), dropped)

    def _datasets(
        self, group: Any, path: str = ""
    ) -> Iterator[tuple[str, Any]]:
        for name in group:
            key = f"{path}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise self.damaged(f"'{key}' is a link, where Keras has none")
            item = group[name]
            if h5py.h5o.get_info(item.id).rc > 1:
                raise self.damaged(f"'{key}' has another name as well")
            if isinstance(item, h5py.Group):
                yield from self._datasets(item, f"{key}/")
            elif isinstance(item, h5py.Dataset):
                yield key, item

    def _tensor(self, key: str, dataset: Any) -> Tensor:
        if dataset.is_virtual or dataset.external:
            raise self.damaged(f"'{key}' lies in another file")
        dtype: Any = dataset.dtype
        if dtype == "V2" and str(dataset.attrs.get("dtype")) == "bfloat16":
            dtype = np.dtype(tf.bfloat16.as_numpy_dtype)  # as Keras 3 marks it
        elif dtype.kind == "V":
            raise self.damaged(
                f"'{key}' is of no known type; Keras 2 writes bfloat16 so, and "
                "cannot read it itself"
            )
        elif dtype.hasobject:  # strings
            dtype = None
        else:
            dtype = dtype.newbyteorder("=")  # files may differ in it
        if dataset.shape is None:
            return Tensor((), None)
        if dataset.nbytes > _MAX_COMPRESSION * dataset.file.id.get_filesize():
            raise self.damaged(f"'{key}' is larger than its file can hold")
        return Tensor(dataset.shape, dtype)

    def _found(self) -> tuple[int, int]:
        """Returns where the HDF5 file begins in its file, and its size."""
        return 0, tf.io.gfile.stat(self.path).length

    @contextlib.contextmanager
    def _part(self) -> Iterator[Any]:
        """Opens the HDF5 file as a file of bytes."""
        with _open(self.path) as file:
            yield io.BufferedReader(_Part(file, *self._place))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with self.errors_named("it is no whole HDF5 file"):
            with self._part() as part, h5py.File(part, "r") as file:
                yield file


class KerasCheckpoint(Hdf5Checkpoint):
    """A `.keras` file, whose member `model.weights.h5` has the weights."""

    form = ".keras file"

    def _found(self) -> tuple[int, int]:
        what = "it is no whole zip file"
        with self.errors_named(what), _open(self.path) as file:
            archive = zipfile.ZipFile(file)
            damaged = archive.testzip()  # compares the checksums
            if damaged:
                raise ValueError(f"the checksum of {damaged} is wrong")
            member = archive.getinfo(_WEIGHTS)
            if member.compress_type != zipfile.ZIP_STORED:
                raise self.damaged(
                    f"its {_WEIGHTS} is compressed, which Keras does not do; "
                    "load and save it with Keras"
                )
            file.seek(member.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            return member.header_offset + 30 + name + extra, member.file_size

    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        weights = path.with_name(_WEIGHTS)
        super().write(weights, values, dropped)
        with _open(self.path) as file, zipfile.ZipFile(path, "w") as target:
            source = zipfile.ZipFile(file)
            for member in source.infolist():
                if member.filename == _WEIGHTS:
                    target.write(weights, _WEIGHTS)
                    continue
                as_new = copy.copy(member)  # which `open` changes
                with source.open(member) as old:
                    with target.open(as_new, "w") as new:
                        shutil.copyfileobj(old, new, _COPIED_AT_ONCE)


class ShardedCheckpoint(Checkpoint):
    """A `.weights.json` file, which lists `.weights.h5` shards beside it."""

    form = "sharded .weights.json"

    def __init__(self, path: str, argument: str) -> None:
        super().__init__(path, argument)
        self.tensors = {}
        with self.errors_named("it is no list of shards"):
            with tf.io.gfile.GFile(path) as file:
                self._config = json.load(file)
            weight_map = self._config["weight_map"]
            for group, names in weight_map.items():
                weight_map[group] = [names] if isinstance(names, str) else names
            names = set().union(*weight_map.values())
        there = {atomic_files.split(f)[1]: f for f in self.files[:-1]}
        lost = ", ".join(sorted(map(str, names - there.keys())))
        if lost:
            raise self.damaged(f"its shards {lost} are missing")
        self._shards, self._shard_of = {}, {}
        for name in sorted(names):
            shard = self._shards[name] = Hdf5Checkpoint(there[name], argument)
            self._shard_of.update(dict.fromkeys(shard.tensors, name))
            self.tensors.update(shard.tensors)
        self.kinds = tensor_kinds.of_keras(self.tensors)

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        for name, some in itertools.groupby(keys, self._shard_of.__getitem__):
            yield from self._shards[name].read(some)

    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        stem = path.name[: -len(paths.SHARDED)]
        with contextlib.ExitStack() as files:
            new, opened = {}, {}
            for name, shard in self._shards.items():
                # Keras looks for names of this kind only.
                new[name] = stem + name[-len("_00000.weights.h5") :]
                file = path.with_name(new[name])
                shard.copy(file, dropped & shard.tensors.keys())
                opened[name] = files.enter_context(h5py.File(file, "r+"))
            _assign(values, lambda key: opened[self._shard_of[key]])
        weight_map = {
            group: [new[name] for name in names]
            for group, names in self._config["weight_map"].items()
        }
        config = {**self._config, "weight_map": weight_map}
        path.write_text(json.dumps(config, indent=4), encoding="utf-8")


class _Part(io.RawIOBase):
    """Some bytes of a file; before Python 3.13 `zipfile` seeks back slowly."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        left = max(self._size - self._at, 0)
        data = self._file.read(min(len(buffer), left, _COPIED_AT_ONCE))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _open(path: str) -> Any:
    if atomic_files.is_remote(path):
        return tf.io.gfile.GFile(path, "rb")
    return open(path, "rb")


def _copy(old: Any, new: Any, keys: Collection[str], dropped: set[str]) -> None:
    """Copies a group without dropped keys, and groups that hold no others."""
    for name, value in old.attrs.items():
        new.attrs[name] = value
    for name in old:
        path = f"{old.name}/{name}".strip("/")
        below = {key for key in keys if f"{key}/".startswith(f"{path}/")}
        if below.isdisjoint(dropped):
            old.copy(name, new)
        elif not below <= dropped:
            _copy(old[name], new.create_group(name), below, dropped)


def _assign(values: Values, file_of: Callable[[str], Any]) -> None:
    """Writes values in whatever type and byte order the files have."""
    for key, value in values:
        if value is not None:
            dataset = file_of(key)[key]
            if dataset.dtype.kind == "V":
                value = value.view(dataset.dtype)
            dataset[...] = value


def _places(file: Any) -> dict[str, tuple[int, int]]:
    """Returns the places by which Keras loads, as names of layers vary."""

    def listed(group: Any, name: str) -> list[str]:
        # Keras splits a list that is too long for one attribute.
        parts = filter(re.compile(rf"{name}\d*").fullmatch, group.attrs)
        in_order = sorted(parts, key=lambda part: (len(part), part))
        found = [each for part in in_order for each in group.attrs[part]]
        return [n.decode() if isinstance(n, bytes) else n for n in found]

    places: dict[str, tuple[int, int]] = {}
    group = file.get("model_weights", file)
    n_layers = 0
    for layer in [*listed(group, "layer_names"), "top_level_model_weights"]:
        names = listed(group[layer], "weight_names") if layer in group else []
        for i, name in enumerate(names):
            key = f"{group.name}/{layer}/{name}".lstrip("/")
            places[key] = (n_layers, i)
        n_layers += bool(names)
    return places
