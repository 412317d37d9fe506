"""Moments of a batch, their merging and normalizing by them."""

from __future__ import annotations

import itertools
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


def batch_moments(
    layer: Any, inputs: tf.Tensor, mask: tf.Tensor | None, call: Any = None
) -> Moments:
    """Returns the moments of one batch, exact to about 1e-7.

    Args:
        layer: The layer, which knows the axis of the channels.
        inputs: Tensor of any floating dtype and rank.
        mask: The samples that count, in a shape that broadcasts to that of
            `inputs` without its last axis. None counts all.
        call: Calls `function(*tensors, **settings)`, given these.
    """
    order, n_channels = _channels_last(layer, inputs)
    rank = inputs.shape.rank
    x = tf.transpose(inputs, order) if order != [*range(rank)] else inputs
    is_double = inputs.dtype == tf.float64
    x = tf.cast(x, tf.float64 if is_double else tf.float32)
    block = _largest_divisor(x, n_channels, _MAX_BLOCK)
    blocks = tf.reshape(x, [-1, block, n_channels])
    weights = None
    if mask is not None:
        if order != [*range(rank)] or n_channels != x.shape[-1]:
            raise ValueError(
                "`mask` needs a batch-norm layer whose `axis` is the last. "
                f"Received: axis={layer.axis} in layer {layer.name}"
            )
        samples = tf.concat([tf.shape(x)[:-1], [1]], 0)
        weights = tf.broadcast_to(tf.expand_dims(mask, -1), samples)
        weights = tf.reshape(tf.cast(weights, x.dtype), [-1, block, 1])
    found = (call or _call)(_moments_of_blocks, blocks, weights)
    for each in found[1:]:
        each.set_shape([n_channels])
    return Moments(*found)


def normalize(
    layer: Any,
    inputs: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    call: Any = None,
) -> tf.Tensor:
    """Returns gamma * (inputs - mean) / sqrt(variance + epsilon) + beta.

    Args:
        layer: The layer, of which gamma, beta and epsilon are.
        inputs: Tensor of any floating dtype and rank.
        mean: Tensor of one number a channel.
        variance: Tensor of one number a channel.
        call: Calls `function(*tensors, **settings)`, given these.
    """
    order, n_channels = _channels_last(layer, inputs)
    is_last = order == [*range(inputs.shape.rank)]
    x = inputs if is_last else tf.transpose(inputs, order)
    shape = tf.shape(x)
    times = _largest_divisor(x, n_channels, max(_MAX_ROW // n_channels, 1))
    outputs = (call or _call)(
        _normalized_rows,
        tf.reshape(x, [-1, times * n_channels]),
        *map(_vector, (mean, variance, layer.gamma, layer.beta)),
        epsilon=float(layer.epsilon),
    )
    outputs = tf.reshape(outputs, shape)
    if not is_last:
        outputs = tf.transpose(outputs, np.argsort(order))
    outputs.set_shape(inputs.shape)
    return outputs


def _call(function: Any, *tensors: Any, **settings: Any) -> Any:
    return function(*tensors, **settings)


def _moments_of_blocks(
    blocks: tf.Tensor, weights: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns count, mean and variance of [block, sample, channel]."""
    if weights is None:
        size = tf.size(blocks, tf.int64)
        count = tf.cast(size // tf.shape(blocks, tf.int64)[-1], tf.float64)
    else:
        count = tf.reduce_sum(tf.cast(weights, tf.float64))

    def means(blocks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the means of values and squares, and stores no squares."""
        if weights is not None:
            blocks = blocks * weights
        sums = tf.cast(tf.reduce_sum(blocks, 1), tf.float64)
        norms = tf.cast(tf.math.reduce_euclidean_norm(blocks, 1), tf.float64)
        return (
            tf.math.divide_no_nan(tf.reduce_sum(sums, 0), count),
            tf.math.divide_no_nan(tf.reduce_sum(tf.square(norms), 0), count),
        )

    mean, square = means(blocks)
    variance = square - tf.square(mean)

    def from_deviations() -> tuple[tf.Tensor, tf.Tensor]:
        center = tf.cast(mean, blocks.dtype)
        rest, square = means(blocks - center)
        return tf.cast(center, tf.float64) + rest, square - tf.square(rest)

    mean, variance = tf.cond(
        # False also where the squares are infinite.
        tf.reduce_all(square - _MAX_ERROR_FACTOR * variance <= 0.0),
        lambda: (mean, variance),
        from_deviations,
    )
    return count, mean, tf.maximum(variance, 0.0)


def _normalized_rows(
    rows: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
) -> tf.Tensor:
    """Normalizes rows in which all channels follow each other, repeatedly."""
    scale = tf.math.rsqrt(tf.cast(variance, tf.float64) + epsilon)
    if gamma is not None:
        scale *= tf.cast(gamma, tf.float64)
    offset = -tf.cast(mean, tf.float64) * scale
    if beta is not None:
        offset += tf.cast(beta, tf.float64)
    dtype = tf.float64 if rows.dtype == tf.float64 else tf.float32
    times = tf.shape(rows)[1] // tf.size(scale)
    scale, offset = (
        tf.tile(tf.cast(each, dtype), [times]) for each in (scale, offset)
    )
    return tf.cast(tf.cast(rows, dtype) * scale + offset, rows.dtype)


def _vector(parameter: Any) -> tf.Tensor | None:
    """Returns a parameter of a layer as a tensor of one axis."""
    if parameter is None:
        return None
    vector = tf.convert_to_tensor(parameter)
    if vector.shape.rank > 1:  # of a layer of Keras 2 with several axes
        vector = tf.reshape(vector, [-1])
    return vector


def _channels_last(layer: Any, inputs: tf.Tensor) -> tuple[list[int], int]:
    """Returns the axes of `inputs`, channels last, and the channels' number."""
    rank = inputs.shape.rank
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    axes = sorted(axis % rank for axis in axes)
    others = [axis for axis in range(rank) if axis not in axes]
    return [*others, *axes], layer.moving_mean.shape.num_elements()


def _largest_divisor(x: tf.Tensor, n_channels: int, at_most: int) -> int:
    """Returns the largest divisor of the number of samples in an image.

    1 where their number is not known before the graph runs.
    """
    sizes = reversed(x.shape[1:].as_list())
    known = list(itertools.takewhile(lambda size: size is not None, sizes))
    samples = max(int(np.prod(known)) // n_channels, 1)
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
        of_layers = [batches.get(n, ()) for n in range(len(self._channels))]
        for each in itertools.zip_longest(*of_layers):
            self._merge_one_of_each_layer(each)

    def _merge_one_of_each_layer(self, batches: Sequence[Any]) -> None:
        """Merges one batch, or None, of each layer."""
        zero = tf.constant(0.0, tf.float64)
        counts, means, variances = zip(
            *(
                batch or (zero, *[tf.zeros([channels], tf.float64)] * 2)
                for batch, channels in zip(batches, self._channels)
            )
        )
        count, of_batch = self._count.read_value(), tf.stack(counts)
        layer_of = np.repeat(range(len(self._channels)), self._channels)
        merged = Moments(
            tf.gather(count, layer_of), self._mean, self._variance
        ).merge(
            Moments(
                tf.gather(of_batch, layer_of),
                tf.concat(means, 0),
                tf.concat(variances, 0),
            )
        )
        self._mean.assign(merged.mean)
        self._variance.assign(merged.variance)
        self._count.assign(count + of_batch)
        self._n_updates.assign_add(tf.cast(of_batch > 0.0, tf.float64))
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
