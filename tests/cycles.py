"""One process that swaps, refits and saves again and again.

`python -m tests.cycles FOLDER N CONTROL` prints, at some of N cycles, what the
process holds. With CONTROL 1 it trains and saves, and nothing is averaged.
"""

import ctypes
import gc
import json
import os
import pathlib
import sys

import tensorflow as tf

import swa_tf
from tests import fitting


class Traced(tf.keras.layers.Layer):
    """Counts how often it is traced, or called in eager mode."""

    n = 0

    def call(self, inputs):
        Traced.n += 1
        return inputs


def held():
    """Counts the objects of each kind, after a garbage collection."""
    gc.collect()
    # What is freed goes back to the system, so that what is not shows.
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
        "traces": Traced.n,
    }


def main(folder, n, control):
    optimizer = tf.keras.optimizers.SGD(0.01)
    model = tf.keras.Sequential(
        [
            tf.keras.Input([4]),
            tf.keras.layers.Dense(64),
            Traced(),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Dense(1),
        ]
    )
    swa = swa_tf.StochasticWeightAveraging()
    checkpoints = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model, optimizer=optimizer, swa=swa),
        folder,
        max_to_keep=2,
    )
    data = fitting.data()
    refit = swa_tf.BatchNormRefit(model)

    @tf.function
    def train(inputs, targets):
        fitting.descend(model, optimizer, inputs, targets)

    for cycle in range(1, n + 1):
        for inputs, targets in data:
            train(inputs, targets)
        if not control:
            swa.apply(model.trainable_variables)
            with swa_tf.averaged_weights(
                swa, model, refit_data=data, refit=refit
            ):
                model.save_weights(os.path.join(folder, "m.weights.h5"))
        checkpoints.save()
        if cycle in (100, 250, 500, 1000, 1500, 2000):
            print(json.dumps({"cycle": cycle, **held()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
