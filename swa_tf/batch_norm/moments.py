"""Moments of samples: of one batch, merged, and of all layers of a pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf.support import variables as variables_lib

# Inputs are summed in their own dtype over blocks of at most this many
# samples, and the sums of blocks in float64. A float32 sum of n terms of one
# sign is off by at most (n - 1) * 2^-24 of itself, here 3.8e-6. That is where
# all terms are equal; otherwise the errors mostly cancel, and 1e-7 is left in
# the tests, where a float32 sum over a whole batch is off by up to 8e-4.
_MAX_BLOCK = 64

# With u the relative error of the mean of squares, by the above,
#
#     variance = mean of squares - mean^2
#
# is off by at most u * (1 + mean^2 / variance) of itself. Where that factor is
# larger than this for any channel, deviations from the mean are squared.
_MAX_ERROR_FACTOR = 9.0

# Vectors of few channels are repeated to about this length: TensorFlow's
# kernels are slow where the innermost dimension is short.
_MAX_ROW = 1024


class Moments(NamedTuple):
    """Count, mean and variance of samples, in float64, a vector of channels."""

    count: Any
    mean: Any
    variance: Any

    def merge(self, other: Moments) -> Moments:
        """Returns the moments of both sets of samples (Chan et al.)."""
        count = self.count + other.count
        share = tf.math.divide_no_nan(other.count, count)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * share,
            self.variance * (1.0 - share)
            + other.variance * share
            + tf.square(delta) * share * (1.0 - share),
        )


def channel_axes(
    layer: Any, inputs: tf.Tensor, mask: Any = None
) -> tuple[int, ...]:
    """The axes of `inputs` along which the parameters of a layer lie."""
    rank = inputs.shape.rank
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    axes = tuple(sorted(axis % rank for axis in axes))
    if mask is not None and axes != (rank - 1,):
        raise ValueError(
            "`mask` needs a batch-norm layer whose `axis` is the last. "
            f"Received: axis={layer.axis} in layer {layer.name}"
        )
    return axes


def batch_moments(
    inputs: tf.Tensor, mask: tf.Tensor | None, axes: tuple[int, ...]
) -> Moments:
    """Returns the moments of one batch, exact to about 1e-7.

    Args:
        inputs: Tensor of any floating dtype and rank.
        mask: Which samples count, in a shape that broadcasts to that of
            `inputs` without its last axis. None: all.
        axes: The axes of the channels.
    """
    x, channels = _channels_last(inputs, axes)
    block = _largest_divisor(x, _MAX_BLOCK)
    if mask is None:
        weights = None
        count = tf.cast(tf.size(x, tf.int64) // channels, tf.float64)
    else:
        samples = tf.concat([tf.shape(x)[:-1], [1]], 0)
        weights = tf.broadcast_to(tf.expand_dims(mask, -1), samples)
        weights = tf.reshape(tf.cast(weights, x.dtype), [-1, block, 1])
        count = tf.reduce_sum(tf.cast(weights, tf.float64))

    def means(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Of values and of their squares, with no tensor of the squares."""
        blocks = tf.reshape(values, [-1, block, channels])
        if weights is not None:
            blocks = blocks * weights
        sums = tf.cast(tf.reduce_sum(blocks, 1), tf.float64)
        norms = tf.cast(tf.math.reduce_euclidean_norm(blocks, 1), tf.float64)
        return (
            tf.math.divide_no_nan(tf.reduce_sum(sums, 0), count),
            tf.math.divide_no_nan(tf.reduce_sum(tf.square(norms), 0), count),
        )

    mean, square = means(x)
    variance = square - tf.square(mean)

    def from_deviations() -> tuple[tf.Tensor, tf.Tensor]:
        center = tf.cast(mean, x.dtype)
        rows, times = _rows(x, channels)
        rest, square = means(rows - tf.tile(center, [times]))
        return tf.cast(center, tf.float64) + rest, square - tf.square(rest)

    mean, variance = tf.cond(
        # False also where the squares are infinite.
        tf.reduce_all(square - _MAX_ERROR_FACTOR * variance <= 0.0),
        lambda: (mean, variance),
        from_deviations,
    )
    return Moments(count, mean, tf.maximum(variance, 0.0))


def normalize(
    inputs: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    axes: tuple[int, ...],
) -> tf.Tensor:
    """Returns gamma * (inputs - mean) / sqrt(variance + epsilon) + beta.

    Args:
        inputs: Tensor of any floating dtype and rank.
        mean: Tensor of one number a channel, as are the next three.
        variance: As `mean`.
        gamma: As `mean`.
        beta: As `mean`.
        epsilon: What is added to the variance.
        axes: The axes of the channels.
    """
    x, channels = _channels_last(inputs, axes)
    mean, variance, gamma, beta = (
        tf.reshape(tf.cast(each, tf.float64), [-1])
        for each in (mean, variance, gamma, beta)
    )
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    offset = beta - mean * scale
    rows, times = _rows(x, channels)
    scale, offset = (
        tf.tile(tf.cast(each, x.dtype), [times]) for each in (scale, offset)
    )
    outputs = tf.cast(rows * scale + offset, inputs.dtype)
    order = _order(inputs, axes)
    shape = tf.gather(tf.shape(inputs), order)
    outputs = tf.transpose(tf.reshape(outputs, shape), np.argsort(order))
    outputs.set_shape(inputs.shape)
    return outputs


def parameters(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Gamma and beta of a layer; ones and zeros where it has none."""
    gamma, beta = layer.gamma, layer.beta
    shape = layer.moving_mean.shape
    return (
        tf.ones(shape) if gamma is None else tf.convert_to_tensor(gamma),
        tf.zeros(shape) if beta is None else tf.convert_to_tensor(beta),
    )


def _order(inputs: tf.Tensor, axes: tuple[int, ...]) -> list[int]:
    """The axes of `inputs`, those of the channels last."""
    others = [axis for axis in range(inputs.shape.rank) if axis not in axes]
    return [*others, *axes]


def _channels_last(
    inputs: tf.Tensor, axes: tuple[int, ...]
) -> tuple[tf.Tensor, int]:
    """At least float32, with the channels in the last axis; how many they are.

    Several axes of channels become one.
    """
    x = tf.cast(
        inputs, tf.float64 if inputs.dtype == tf.float64 else tf.float32
    )
    order = _order(inputs, axes)
    if order != sorted(order):
        x = tf.transpose(x, order)
    if len(axes) > 1:
        samples = x.shape[: -len(axes)]
        channels = x.shape[-len(axes) :].num_elements()
        shape = tf.concat([tf.shape(x)[: -len(axes)], [channels]], 0)
        x = tf.ensure_shape(tf.reshape(x, shape), [*samples, channels])
    return x, x.shape[-1]


def _rows(x: tf.Tensor, channels: int) -> tuple[tf.Tensor, int]:
    """`x` as a matrix, and how many samples there are in a row of it."""
    times = _largest_divisor(x, max(_MAX_ROW // channels, 1))
    return tf.reshape(x, [-1, times * channels]), times


def _largest_divisor(x: tf.Tensor, at_most: int) -> int:
    """The largest divisor of the number of samples in an image of `x`.

    1 where their number is not known before the graph runs.
    """
    sizes = x.shape[1:-1].as_list()
    if None in sizes:
        sizes = [sizes[-1] or 1]
    samples = int(np.prod(sizes))
    divisors = range(min(samples, at_most), 0, -1)
    return next((each for each in divisors if samples % each == 0), 1)


class Statistics(NamedTuple):
    """The moments of all samples that a pass has shown to a layer."""

    n_updates: int
    n_samples: float
    mean: np.ndarray
    variance: np.ndarray
    mean_of_variances: np.ndarray


class Accumulators:
    """Variables that batches are merged into, on the device, in float64.

    The channels of all layers lie in one vector, so that a batch costs a few
    ops for all layers together.

    Args:
        channels: The number of channels of each layer.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self._channels = channels
        layers = tf.zeros([len(channels)], tf.float64)
        zeros = tf.zeros([sum(channels)], tf.float64)
        self.variables = [
            variables_lib.local_variable(value, "accumulator", None)
            for value in (layers, layers, zeros, zeros, zeros)
        ]
        self._n_updates, self._count = self.variables[:2]
        self._mean, self._variance, self._sum_of_variances = self.variables[2:]

    def reset(self) -> None:
        """Forgets all samples."""
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))

    def merge(self, batches: Mapping[int, Sequence[Moments]]) -> None:
        """Merges batches, by the number of the layer that met them."""
        zero = tf.constant(0.0, tf.float64)
        wholes, n_updates, variances = [], [], []
        for number, channels in enumerate(self._channels):
            met = batches.get(number)
            if not met:
                zeros = tf.zeros([channels], tf.float64)
                met = [Moments(zero, zeros, zeros)]
            wholes.append(functools.reduce(Moments.merge, met))
            n_updates.append(tf.math.count_nonzero([m.count for m in met]))
            variances.append(sum(each.variance for each in met[1:]))
            variances[-1] += met[0].variance
        counts, means, within = zip(*wholes)
        layer_of = np.repeat(range(len(self._channels)), self._channels)
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
        self._n_updates.assign_add(tf.cast(tf.stack(n_updates), tf.float64))
        self._sum_of_variances.assign_add(tf.concat(variances, 0))

    def read(self) -> list[Statistics]:
        """Returns the statistics of each layer."""
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
