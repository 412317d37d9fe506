"""Keras's weights in several files: `.weights.json` and its shards."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import h5py
import numpy as np
import tensorflow as tf

from swa_tf.checkpoints import paths
from swa_tf.checkpoints.checkpoint import (
    DamagedError,
    Values,
    errors_as_damage,
)
from swa_tf.checkpoints.keras_format import Hdf5Checkpoint, assign
from swa_tf.support import whole_files


class ShardedCheckpoint(Hdf5Checkpoint):
    """A `.weights.json` file, which names the shard of each group of weights.

    The shards are `.weights.h5` files beside it.
    """

    form = "sharded .weights.json"

    def __init__(self, path: str) -> None:
        self.path, self.tensors, self.places = path, {}, {}
        with errors_as_damage("it is no list of shards"):
            with tf.io.gfile.GFile(path) as file:
                self._config = json.load(file)
            shards = self._config["weight_map"].values()
            lists = [[s] if isinstance(s, str) else s for s in shards]
            names = set(itertools.chain.from_iterable(lists))
        known = {whole_files.split(f)[1]: f for f in paths.files(path)[:-1]}
        lost = ", ".join(sorted(map(str, names - known.keys())))
        if lost:
            raise DamagedError(f"its shards {lost} are missing")
        self._shards = [Hdf5Checkpoint(known[name]) for name in sorted(names)]
        self._shard_of = {}
        for shard in self._shards:
            for key, tensor in shard.tensors.items():
                if key in self.tensors:
                    raise DamagedError(f"'{key}' is in two of its shards")
                self.tensors[key], self._shard_of[key] = tensor, shard
        self._tell_apart()

    def read(self, keys: Iterable[str]) -> Iterator[np.ndarray]:
        for shard, some in itertools.groupby(keys, self._shard_of.__getitem__):
            yield from shard.read(some)

    def write(
        self, path: pathlib.Path, values: Values, dropped: set[str]
    ) -> None:
        stem = path.name[: -len(paths.SHARDED)]
        weight_map: dict[str, list[str]] = {}
        with contextlib.ExitStack() as files:
            opened = {}
            for i, shard in enumerate(self._shards):
                # Keras finds the first one by this name, and no other.
                new = path.with_name(f"{stem}_{i:05}.weights.h5")
                shard.copy(new, dropped & shard.tensors.keys())
                opened[shard] = files.enter_context(h5py.File(new, "r+"))
                for key in shard.tensors.keys() - dropped:
                    names = weight_map.setdefault(
                        os.path.dirname(f"/{key}"), []
                    )
                    if new.name not in names:
                        names.append(new.name)
            for key, value in values:
                if value is not None:
                    assign(opened[self._shard_of[key]][key], value)
        config = {**self._config, "weight_map": weight_map}
        path.write_text(json.dumps(config, indent=4), encoding="utf-8")
