"""A run of `benchmarks.cifar10 --keep_weights`, to be measured again."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import swa_tf
from benchmarks.cifar10 import config as config_lib
from benchmarks.cifar10 import data, training
from benchmarks.cifar10.run_directory import SETTINGS, WEIGHTS
from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError

BATCH = 256
_EPOCH = re.compile(r"epoch-(\d+)\.npz")

Weights = list[np.ndarray]
"""The values of a model's trainable variables, in their order."""


class SavedRun:
    """A run whose weights were kept: its settings, images, model, weights.

    Args:
        path: The output directory of the run.
        data_dir: Where the images are now; None for where they were.

    Raises:
        BenchmarkError: If there is no such run.
    """

    def __init__(self, path: str, data_dir: str | None = None) -> None:
        self._directory = os.path.join(path, WEIGHTS)
        if not os.path.isdir(self._directory):
            raise BenchmarkError(
                "`--run` must be the directory of a run of "
                "`benchmarks.cifar10 --keep_weights`. "
                f"Received: --run={path}, which holds no {WEIGHTS}"
            )
        settings = files.read_json(os.path.join(path, SETTINGS))
        self.flags: dict[str, Any] = settings["flags"]
        given = {**self.flags, "distribution": "none", "num_replicas": 1}
        if data_dir is not None:
            given["data_dir"] = data_dir
        self.config = config_lib.resolve(given)
        self.splits = data.load(self.config)
        self.model = training.Trainer(self.config, self.splits).model

    def epochs(self) -> list[int]:
        """Returns the epochs whose weights were kept, in order."""
        matches = map(_EPOCH.fullmatch, os.listdir(self._directory))
        return sorted(int(match.group(1)) for match in matches if match)

    def epoch(self, epoch: int) -> Weights:
        """Returns the weights at the end of an epoch."""
        return self.weights(f"epoch-{epoch:05d}")

    def weights(self, name: str) -> Weights:
        """Returns the weights that were kept under a name.

        Args:
            name: `swa`, `decayed`, or an epoch as in `epoch-00009`.

        Raises:
            BenchmarkError: If they are missing, damaged or of other shapes.
        """
        path = os.path.join(self._directory, f"{name}.npz")
        try:
            with np.load(path, allow_pickle=False) as kept:
                weights = [kept[f"arr_{i}"] for i in range(len(kept.files))]
        except (OSError, ValueError, KeyError) as error:
            raise BenchmarkError(f"{path} cannot be read: {error}") from error
        wanted = [tuple(v.shape) for v in self.model.trainable_variables]
        found = [w.shape for w in weights]
        if wanted != found:
            raise BenchmarkError(
                f"{path} must hold the weights of the model of the run. "
                f"Received: {len(found)} arrays for {len(wanted)} variables, "
                "or arrays of other shapes"
            )
        return weights


class Meter:
    """Measures a model with any weights, after a refit to these weights.

    Args:
        run: The run whose model is measured.
        refit: Training images for the refit.
        sets: From a name to the images that the model is measured on.
        batch_size: Images in a batch of the refit.
    """

    def __init__(
        self,
        run: SavedRun,
        refit: data.Examples,
        sets: dict[str, data.Examples],
        batch_size: int = BATCH,
    ) -> None:
        self.model = run.model
        self._refit = swa_tf.BatchNormRefit(self.model)
        self._refit_batches = batches(refit, batch_size)
        # Standardized once, and not again at each point.
        self._sets = {name: batches(s, BATCH) for name, s in sets.items()}
        self._moving = run.config.batch_norm != "moving_free"
        self._step = tf.function(self._count, reduce_retracing=True)

    def __call__(self, weights: Sequence[np.ndarray]) -> dict[str, Any]:
        """Returns the figures of `evaluate` with these weights, refitted."""
        assign(self.model, weights)
        self._refit(self._refit_batches)
        return self.evaluate()

    def evaluate(self) -> dict[str, Any]:
        """Returns figures of the model as it is, by the name of the set.

        These are `loss`, cross-entropy in nats, and `error`, in per cent.
        """
        figures = {}
        for name, images in self._sets.items():
            totals = np.zeros(3)
            for batch in images:
                totals += self._step(*batch).numpy()
            n, loss, wrong = totals
            figures[name] = {"loss": loss / n, "error": 100.0 * wrong / n}
        return figures

    def _count(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns [number of images, sum of losses, number wrong]."""
        logits = self.model(
            images, training=False, use_moving_statistics=self._moving
        )
        logits = tf.cast(logits, tf.float64)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        wrong = tf.not_equal(tf.argmax(logits, -1, labels.dtype), labels)
        counts = tf.cast(
            [tf.size(labels), tf.math.count_nonzero(wrong, dtype=tf.int32)],
            tf.float64,
        )
        return tf.stack([counts[0], tf.reduce_sum(losses), counts[1]])


def batches(
    examples: data.Examples, batch_size: int
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Returns the images standardized, in memory, to be used many times."""
    return list(data.plain_batches(examples, batch_size))


def assign(model: tf.keras.Model, weights: Sequence[np.ndarray]) -> None:
    """Gives the trainable variables of a model new values."""
    for variable, value in zip(model.trainable_variables, weights):
        variable.assign(value.astype(np.float32))


def sample(examples: data.Examples, n: int, seed: int) -> data.Examples:
    """Returns `n` examples drawn without replacement, or all if fewer."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return examples.take(order[:n])
