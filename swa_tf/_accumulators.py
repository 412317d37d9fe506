"""The moments of all samples of a pass, of all its layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf import _variables
from swa_tf._moments import Moments


class Statistics(NamedTuple):
    """What a pass has found of a layer."""

    n_updates: int
    n_samples: float
    mean: np.ndarray
    variance: np.ndarray
    mean_of_variances: np.ndarray


class Accumulators:
    """Moments that batches are merged into, on the device, in float64.

    The channels of all layers lie in one vector: so a batch costs a few ops,
    and not a few a layer.

    Args:
        channels: How many of them each layer has.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self._channels = channels
        layers = tf.zeros([len(channels)], tf.float64)
        zeros = tf.zeros([sum(channels)], tf.float64)
        self._n_updates, self._count = _local(layers), _local(layers)
        self._mean, self._variance = _local(zeros), _local(zeros)
        self._sum_of_variances = _local(zeros)
        self.variables = [
            self._n_updates,
            self._count,
            self._mean,
            self._variance,
            self._sum_of_variances,
        ]

    def reset(self) -> None:
        """Forgets all samples."""
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))

    def merge(self, batches: Mapping[int, Sequence[Moments]]) -> None:
        """Merges batches, by the number of the layer that met them."""
        numbers = range(len(self._channels))
        nothing = tf.constant(0.0, tf.float64)
        pooled, n_updates, variances = [], [], []
        for number in numbers:
            zeros = tf.zeros([self._channels[number]], tf.float64)
            whole, updates, variance = Moments(nothing, zeros, zeros), [], zeros
            for index, batch in enumerate(batches.get(number, ())):
                batch = Moments(batch.count, *map(_flat, batch[1:]))
                whole = whole.merge(batch) if index else batch
                variance = (
                    variance + batch.variance if index else batch.variance
                )
                updates.append(tf.cast(batch.count > 0.0, tf.float64))
            pooled.append(whole)
            n_updates.append(tf.add_n(updates) if updates else nothing)
            variances.append(variance)
        counts, means, within = zip(*pooled)
        layer_of = np.repeat(numbers, self._channels)
        count = self._count.read_value()
        merged = Moments(
            tf.gather(count, layer_of), self._mean, self._variance
        ).merge(
            Moments(
                tf.gather(tf.stack(counts), layer_of),
                tf.concat(means, 0),
                tf.concat(within, 0),
            )
        )
        self._mean.assign(merged.mean)
        self._variance.assign(merged.variance)
        self._count.assign(count + tf.stack(counts))
        self._n_updates.assign_add(tf.stack(n_updates))
        self._sum_of_variances.assign_add(tf.concat(variances, 0))

    def read(self) -> list[Statistics]:
        """What was found of each layer."""
        ends = np.cumsum(self._channels)[:-1]
        n_updates = self._n_updates.numpy()
        of_batches = np.repeat(np.maximum(n_updates, 1.0), self._channels)
        vectors = (
            self._mean.numpy(),
            self._variance.numpy(),
            self._sum_of_variances.numpy() / of_batches,
        )
        return [
            Statistics(int(n), count, *arrays)
            for n, count, *arrays in zip(
                n_updates,
                self._count.numpy(),
                *(np.split(vector, ends) for vector in vectors),
            )
        ]


def _local(value: tf.Tensor) -> tf.Variable:
    return _variables.local_variable(value, "accumulator", None)


def _flat(vector: Any) -> tf.Tensor:
    return tf.reshape(vector, [-1])
