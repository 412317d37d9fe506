"""TensorFlow's checkpoints, object-based and name-based."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.checkpoints import object_graph, paths, tensor_kinds
from swa_tf.checkpoints.checkpoint import (
    Checkpoint,
    Kinds,
    SavedAverage,
    Tensor,
    Values,
    groups,
)
from swa_tf.support import atomic_files

_MAX_SHARD_BYTES = 1 << 30  # held in memory until they are written at once


class TensorFlowCheckpoint(Checkpoint):
    """A checkpoint that `tf.train.load_checkpoint` reads."""

    form = "TensorFlow checkpoint"

    def __init__(self, path: str, argument: str) -> None:
        super().__init__(path, argument)
        self._read_from = path
        with self.errors_named("its index cannot be read"):
            if re.search(r"[*?\[\\]", path) and not atomic_files.is_remote(
                path
            ):
                # TensorFlow would take the path for a pattern.
                self._links = tempfile.TemporaryDirectory()
                self._read_from = os.path.join(self._links.name, "checkpoint")
                for file in self.files:
                    link = self._read_from + file[len(path) :]
                    os.symlink(os.path.abspath(file), link)
            reader = self._reader()
            shapes = reader.get_variable_to_shape_map()
            self._dtypes = reader.get_variable_to_dtype_map()
        self.tensors = {
            key: Tensor(tuple(shape), _numpy_dtype(self._dtypes[key]))
            for key, shape in shapes.items()
        }
        self._graph: object_graph.ObjectGraph | None = None
        if object_graph.KEY in self.tensors:
            with self.errors_named("its object graph cannot be decoded"):
                self._graph = object_graph.ObjectGraph(
                    self.string(object_graph.KEY), self.tensors.keys()
                )
            slots, state = self._graph.slots, self._graph.state
        else:
            slots, state = tensor_kinds.of_v1(self.tensors)
        guessed = {
            key
            for key, tensor in self.tensors.items()
            if tensor_kinds.is_state(self.name(key), tensor)
            # In an object, such as a model, it may be a weight.
            if not (self._graph and "/" in self.name(key))
        } - (slots | state)
        batch_norm = tensor_kinds.statistics(self.tensors)
        self.kinds = Kinds(slots, state | guessed, guessed, batch_norm)

    def name(self, key: str) -> str:
        return key.removesuffix(object_graph.SUFFIX)

    def twins(self, other: Any) -> dict[str, str]:
        if self._graph and other._graph:
            return self._graph.twins(other._graph)
        return super().twins(other)

    def string(self, key: str) -> bytes:
        """Returns the one string of a scalar tensor."""
        ((_, value),) = self.read([key])
        if not isinstance(value.item(), bytes):
            raise self.damaged(f"'{key}' is no string")
        return value.item()

    def saved_averages(self) -> list[SavedAverage]:
        found = []
        with self.errors_named("the state of its average cannot be read"):
            for keys in self._graph.averages if self._graph else ():
                state = json.loads(self.string(keys.state))
                ((_, n_models),) = self.read([keys.n_models])
                if n_models < 0:
                    raise ValueError(f"it counts {n_models} models")
                saved = SavedAverage(
                    keys.averages,
                    [name for name, _ in state["averaged"]],
                    int(n_models),
                    swapped=bool(state["swapped"]),
                    kind=state.get("kind"),
                    layout=dict(state.get("layout", {})),
                )
                found.append(saved)
        return found

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        reader = self._reader()
        # The first version of `Saver` writes one file, which it compresses.
        data = paths.files(self.path)[:-1]
        sizes = [tf.io.gfile.stat(file).length for file in data]
        at_most = sum(sizes) if data else math.inf
        for key in keys:
            with self.errors_named(f"'{self.name(key)}' cannot be read"):
                if self.tensors[key].nbytes > at_most:
                    raise ValueError("it is larger than the data files")
                if self._dtypes[key].is_numpy_compatible:
                    value = reader.get_tensor(key)
                    # From bytes numpy would strip the zeros at the end.
                    kind = object if isinstance(value, bytes) else None
                    value = np.asarray(value, kind)
                else:  # variants, such as of iterators, which are only checked
                    with tf.Graph().as_default():
                        (tensor,) = self._restored([key])
                        _run(tensor.op)
                    value = np.empty(0)
            yield key, value
            del value  # before the next one is read

    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        parts: list[str] = []
        sizes = {key: tensor.nbytes for key, tensor in self.tensors.items()}
        for items in groups(values, lambda v: sizes[v[0]], _MAX_SHARD_BYTES):
            shard: dict[str, Any] = dict(items)
            if self._graph and dropped and object_graph.KEY in shard:
                graph = self._graph.without(dropped)
                shard[object_graph.KEY] = np.array(graph, object)
            # Short names, since TensorFlow's own suffixes are long.
            parts.append(os.fspath(path.with_name(f"part-{len(parts)}")))
            with atomic_files.errors_named(path):
                self._save(parts[-1], shard)
        joined = os.fspath(path.with_name("joined"))
        with atomic_files.errors_named(path), tf.Graph().as_default():
            op = tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=parts,
                destination_prefix=joined,
                delete_old_dirs=False,
            )
            _run(op)
        for file in paths.files(joined):
            os.rename(file, f"{path}{file[len(joined) :]}")

    def _save(self, path: str, values: dict[str, Any]) -> None:
        with tf.Graph().as_default():
            kept = [key for key, value in values.items() if value is None]
            tensors = dict(zip(kept, self._restored(kept)))
            feed = {}
            for key in values.keys() - tensors.keys():
                tensors[key] = tf.compat.v1.placeholder(self._dtypes[key])
                feed[tensors[key]] = values[key]
            op = tf.raw_ops.SaveV2(
                prefix=path,
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=list(tensors.values()),
            )
            _run(op, feed)

    def _restored(self, keys: list[str]) -> list[tf.Tensor]:
        """Returns tensors of the current graph that read the file."""
        if not keys:  # the op has at least one
            return []
        return tf.raw_ops.RestoreV2(
            prefix=self._read_from,
            tensor_names=keys,
            shape_and_slices=[""] * len(keys),
            dtypes=[self._dtypes[key] for key in keys],
        )

    def _reader(self) -> Any:
        return tf.compat.v1.train.NewCheckpointReader(self._read_from)


def _run(op: tf.Operation, feed: Mapping[Any, Any] | None = None) -> None:
    """Runs an op of the current graph on the CPU, also without eager mode."""
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    with tf.compat.v1.Session(config=config) as session:
        session.run(op, feed)


def _numpy_dtype(dtype: tf.DType) -> np.dtype[Any] | None:
    if dtype == tf.string or not dtype.is_numpy_compatible:
        return None
    return np.dtype(dtype.as_numpy_dtype)
