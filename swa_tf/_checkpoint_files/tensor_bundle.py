"""TensorFlow's checkpoints, object-based and name-based: `.index`, `.data-...`.

The format is that of TensorFlow's `tensor_bundle.cc` and `tensor_bundle.proto`:
the index is a sorted table of where each tensor lies in the data files, which
are plain bytes. To read it here lets tensors larger than memory pass.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2

from swa_tf._checkpoint_files import sstable
from swa_tf._checkpoint_files.checksums import extended
from swa_tf._checkpoint_files.object_graph import (
    KEY,
    SUFFIX,
    AverageKeys,
    ObjectGraph,
)
from swa_tf._checkpoint_files.stored import (
    DamagedError,
    Loaded,
    Stored,
    Tensor,
    as_bytes,
    is_float,
    pieces,
    read,
)

# What TensorFlow's reader raises besides, about files that are damaged.
_ERRORS = (IndexError, RuntimeError, ValueError)

_SLOT_OF_V1 = re.compile(
    r"/(?:Adam|AdamW|Adamax|Nadam|Momentum|MomentumW|RMSProp|Adagrad|Adadelta"
    r"|Ftrl|LAMB|Lion|adam_[mv]|m|v|vhat|momentum|rms|mg|accumulator|linear"
    r"|StochasticWeightAveraging)(?:_\d+)?$",
    re.IGNORECASE,
)
_POWER_OF_V1 = re.compile(r"(^|/)beta\d_power(_\d+)?$")
_OPTIMIZER_OF_V1 = re.compile(
    r"^(?:training/)?(?:Adam|AdamW|Adamax|Nadam|SGD|SGDW|RMSprop|Adagrad"
    r"|Adadelta|Ftrl|LAMB|Lion|Adafactor)(?:_\d+)?/",
    re.IGNORECASE,
)

# Floats so called count or steer the training, and are no weights.
_STATE = re.compile(
    r"(^|[/_])(steps?|epochs?|iter|iterations?|counter|learning_rate|lr"
    r"|beta_?\d_power(_\d+)?|loss_scale)$"
)


class TensorBundle:
    """A checkpoint of TensorFlow, opened: what it holds, not yet the values.

    Attributes:
        path: What `tf.train.load_checkpoint` takes.
        form: What kind of file it is, in words.
        tensors: What it holds, by its key.
        slots: The keys of optimizer slots.
        state: The keys of floats that are no weights.
        guessed: Those of `state` that are only called so.
        batch_norm: The keys of batch-norm statistics.
        averages: The keys of each `WeightAverage`.
    """

    form = "TensorFlow checkpoint"

    def __init__(self, path: str) -> None:
        self.path = path
        self._entries: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self._graph: ObjectGraph | None = None
        if os.path.lexists(path + ".index"):
            self._open()
        elif os.path.lexists(path):
            self._open_version_1()
        else:
            raise DamagedError(f"{os.path.basename(path)}.index is missing")
        self.slots: set[str] = _slots_by_name(self.tensors)
        known: set[str] = set()
        self.averages: list[AverageKeys] = []
        if self._graph:
            self.slots, known = self._graph.slots, self._graph.state
            self.averages = self._graph.averages
        elif self.slots:
            known.update(filter(_POWER_OF_V1.search, self.tensors))
        self.guessed = self._called_state() - self.slots - known
        self.state = known | self.guessed
        self.batch_norm = {
            key
            for key in self.tensors
            if re.search(r"(^|/)moving_(mean|variance)(/|$)", key)
        }

    def name(self, key: str) -> str:
        """A key as it is shown."""
        return key[: -len(SUFFIX)] if key.endswith(SUFFIX) else key

    def string(self, key: str) -> bytes:
        """The one string of a scalar tensor."""
        return _decoded(self.tensors[key])

    def _called_state(self) -> set[str]:
        """The floats whose names say that they are no weights.

        Only scalars, and in an object-based checkpoint only those beside the
        model, not in it: what else an object has may be a weight.
        """
        return {
            key
            for key, tensor in self.tensors.items()
            if tensor.shape == () and is_float(tensor.dtype)
            if _STATE.search(self.name(key))
            if not (self._graph and "/" in self.name(key))
        }

    def write(
        self,
        path: pathlib.Path,
        averaged: Mapping[str, Callable[[], Iterator[np.ndarray]]],
        dropped: set[str],
    ) -> None:
        """Writes it anew, with the pieces of some tensors replaced.

        `dropped` are the keys left out, and in the object graph too.
        """
        entries = [(b"", _header())]
        with open(f"{path}.data-00000-of-00001", "wb") as data:
            for key in sorted(self.tensors.keys() - dropped, key=str.encode):
                tensor = self.tensors[key]
                entry = tensor_bundle_pb2.BundleEntryProto()
                entry.CopyFrom(self._entries[key])
                entry.shard_id, entry.offset = 0, data.tell()
                del entry.slices[:]
                if key == KEY and self._graph and dropped:
                    encoded, crc32c = _encoded(self._graph.without(dropped))
                    entry.crc32c = sstable.masked(crc32c)
                    data.write(encoded)
                elif tensor.dtype is None:
                    for piece in pieces(tensor):
                        data.write(piece.data)
                else:
                    plain = functools.partial(pieces, tensor)
                    new = averaged.get(key, plain)()
                    entry.crc32c = sstable.masked(_write(data, new))
                entry.size = data.tell() - entry.offset
                entries.append((key.encode(), entry.SerializeToString()))
        pathlib.Path(f"{path}.index").write_bytes(sstable.write(entries))

    def _open(self) -> None:
        table = sstable.read(pathlib.Path(self.path + ".index").read_bytes())
        if not table or table[0][0] != b"":
            raise DamagedError("the index has no header")
        try:
            header = tensor_bundle_pb2.BundleHeaderProto.FromString(table[0][1])
            entries = {
                key: tensor_bundle_pb2.BundleEntryProto.FromString(value)
                for key, value in table[1:]
            }
            names = {k: k.decode() for k in entries if not k.startswith(b"\0")}
        except (DecodeError, UnicodeDecodeError) as error:
            raise DamagedError("the index cannot be decoded") from error
        if header.endianness != (sys.byteorder == "big"):
            raise DamagedError("it has the other byte order than this machine")
        shards = self._shards(header.num_shards)
        for key, entry in entries.items():
            name = names.get(key, "a slice")
            tensor = self._tensor(name, entry, shards)
            if key in names:  # slices are read by their whole
                self._entries[name], self.tensors[name] = entry, tensor
        graph = self.tensors.get(KEY)
        if isinstance(graph, Stored):
            try:
                self._graph = ObjectGraph(_decoded(graph))
            except (DecodeError, IndexError) as error:
                raise DamagedError(
                    "its object graph cannot be decoded"
                ) from error

    def _shards(self, count: int) -> list[str]:
        shards = []
        for i in range(count):
            shards.append(f"{self.path}.data-{i:05d}-of-{count:05d}")
            if not os.path.isfile(shards[-1]):
                raise DamagedError(
                    f"the file {os.path.basename(shards[-1])} is missing"
                )
        return shards

    def _tensor(self, key: str, entry: Any, shards: list[str]) -> Tensor:
        shape = tuple(dim.size for dim in entry.shape.dim)
        dtype = _numpy_dtype(key, entry.dtype)
        nbytes = math.prod(shape) * dtype.itemsize if dtype else entry.size
        wrong = DamagedError(f"the index is wrong about '{key}'")
        if min(shape, default=0) < 0 or nbytes < 0:
            raise wrong
        if entry.slices and dtype is not None:
            most = sum(map(os.path.getsize, shards))
            if nbytes > most or not _sound(entry.slices):
                raise wrong
            load = functools.partial(_load, self.path, key)
            return Loaded(shape, dtype, load)
        if not 0 <= entry.shard_id < len(shards) or nbytes != entry.size:
            raise wrong
        crc32c = sstable.unmasked(entry.crc32c)
        file, offset = shards[entry.shard_id], entry.offset
        if not 0 <= offset <= os.path.getsize(file) - nbytes:
            raise DamagedError(
                f"{os.path.basename(file)} ends before '{key}' does"
            )
        if dtype is not None:
            return Stored(shape, dtype, file, offset, nbytes, crc32c)
        checksum = (
            _string_checksum
            if entry.dtype == tf.string.as_datatype_enum
            else _variant_checksum
        )

        def check() -> None:
            data = read(file, offset, nbytes).tobytes()
            if checksum(data, math.prod(shape)) != crc32c:
                raise DamagedError(f"the checksum of '{key}' is wrong")

        return Stored(shape, None, file, offset, nbytes, check=check)

    def _open_version_1(self) -> None:
        """The one file of `tf.compat.v1.train.Saver(write_version=V1)`."""
        try:
            reader = tf.train.load_checkpoint(self.path)
        except (tf.errors.OpError, *_ERRORS) as error:
            raise DamagedError("it is no checkpoint of TensorFlow") from error
        dtypes = reader.get_variable_to_dtype_map()
        for key, shape in reader.get_variable_to_shape_map().items():
            dtype = _numpy_dtype(key, dtypes[key].as_datatype_enum)
            if dtype is None:
                raise DamagedError(f"'{key}' is of type {dtypes[key].name}")
            entry = tensor_bundle_pb2.BundleEntryProto()
            entry.dtype = dtypes[key].as_datatype_enum
            entry.shape.CopyFrom(tf.TensorShape(shape).as_proto())
            self._entries[key] = entry
            self.tensors[key] = Loaded(
                tuple(shape), dtype, functools.partial(_load, self.path, key)
            )


def _header() -> bytes:
    header = tensor_bundle_pb2.BundleHeaderProto()
    header.num_shards = 1
    header.endianness = int(sys.byteorder == "big")
    header.version.producer = 1
    return bytes(header.SerializeToString())


def _numpy_dtype(key: str, number: int) -> np.dtype[Any] | None:
    """The dtype; None for strings and variants."""
    try:
        dtype = tf.as_dtype(number)
        if dtype in (tf.string, tf.variant):
            return None
        return np.dtype(dtype.as_numpy_dtype)
    except (TypeError, KeyError):
        raise DamagedError(
            f"'{key}' is of a type that this TensorFlow cannot read"
        ) from None


def _sound(slices: Any) -> bool:
    """Whether TensorFlow's reader can take these: it aborts at some others."""
    extents = [extent for each in slices for extent in each.extent]
    return len({str(each) for each in slices}) == len(slices) and all(
        extent.start >= 0 and extent.length >= 0 for extent in extents
    )


def _load(path: str, key: str) -> np.ndarray:
    try:
        return np.asarray(tf.train.load_checkpoint(path).get_tensor(key))
    except (tf.errors.OpError, *_ERRORS) as error:
        raise DamagedError(f"'{key}' cannot be read: {error}") from error


def _write(file: IO[bytes], new: Iterator[np.ndarray]) -> int:
    """Writes pieces, and returns the checksum of all of them."""
    crc32c = 0
    for piece in new:
        raw = as_bytes(piece)
        crc32c = extended(crc32c, raw)
        file.write(raw.data)
    return crc32c


def _decoded(tensor: Tensor) -> bytes:
    """The one string of a scalar tensor."""
    data = b"".join(piece.tobytes() for piece in pieces(tensor))
    size, at = sstable.read_varint(data, 0)
    return data[at + 4 : at + 4 + size]


def _encoded(string: bytes) -> tuple[bytes, int]:
    """A scalar string tensor, and its checksum."""
    lengths = extended(0, _length(len(string)))
    data = struct.pack("<I", sstable.masked(lengths)) + string
    return (
        sstable.varint(len(string)) + data,
        extended(lengths, data),
    )


def _string_checksum(data: bytes, count: int) -> int:
    """Of the lengths of the strings, in full, and of what follows them."""
    at = crc32c = 0
    for _ in range(count):
        length, at = sstable.read_varint(data, at)
        crc32c = extended(crc32c, _length(length))
    return extended(crc32c, data[at:])


def _variant_checksum(data: bytes, count: int) -> int:
    """Of each variant's length, bytes and own checksum."""
    at = crc32c = 0
    for _ in range(count):
        length, at = sstable.read_varint(data, at)
        crc32c = extended(crc32c, struct.pack("<Q", length))
        crc32c = extended(crc32c, data[at : at + length + 4])
        at += length + 4
    return crc32c


def _length(length: int) -> bytes:
    return struct.pack("<I" if length < 1 << 32 else "<Q", length)


def _slots_by_name(tensors: Mapping[str, Tensor]) -> set[str]:
    """The optimizer slots of a name-based checkpoint.

    `<variable>/<slot>`, as `tf.compat.v1.train` names them, of the variable's
    shape; and what Keras puts below the optimizer's name.
    """
    slots = set()
    for key, tensor in tensors.items():
        suffix = _SLOT_OF_V1.search(key)
        owner = tensors.get(key[: suffix.start()]) if suffix else None
        if (owner and owner.shape == tensor.shape) or (
            tensor.shape and _OPTIMIZER_OF_V1.match(key)
        ):
            slots.add(key)
    return slots
