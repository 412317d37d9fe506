"""Moments of a batch, their merging and normalizing by them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf.support import variables as variables_lib

# Inputs are summed in their own dtype over blocks of at most this many
# samples, and the sums of blocks in float64. A float32 sum of n terms of one
# sign is off by at most (n - 1) * 2^-24 of itself, here 3.8e-6.
_MAX_BLOCK = 64

# The relative error of the variance, mean of squares - mean^2, is at most
# 1 + mean^2 / variance times that of the mean of squares. Where this factor is
# larger for any channel, deviations from the mean are squared.
_MAX_ERROR_FACTOR = 9.0

# Vectors of few channels are repeated to about this length: TensorFlow's
# kernels are slow where the innermost dimension is short.
_MAX_ROW = 1024


class Moments(NamedTuple):
    """Counts, means and variances of samples, in float64, one a channel."""

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


def _call(function: Any, *tensors: Any, **settings: Any) -> Any:
    return function(*tensors, **settings)


def batch_moments(
    layer: Any, inputs: tf.Tensor, mask: tf.Tensor | None, call: Any = _call
) -> Moments:
    """Returns the moments of one batch, exact to about 1e-7.

    `mask`, of a shape that broadcasts to that of `inputs` without its last
    axis, says which elements count; a fused layer of Keras 2 ignores it.
    `call(function, *tensors, **settings)` calls the part that needs no layer.
    """
    x, _ = _channels_last(layer, inputs)
    n_channels = layer.moving_mean.shape.num_elements()
    x = tf.cast(x, _dtype_of_sums(x))
    shape = [-1, _largest_divisor(x, n_channels, _MAX_BLOCK), n_channels]
    counted = None
    if mask is not None and not getattr(layer, "fused", False):
        counted = tf.expand_dims(tf.cast(mask, tf.bool), -1)
        counted = tf.broadcast_to(counted, tf.shape(inputs))
        counted = tf.reshape(_channels_last(layer, counted)[0], shape)
    found = call(_moments_of_blocks, tf.reshape(x, shape), counted)
    for each in found:
        each.set_shape([n_channels])
    return Moments(*found)


def normalize(
    layer: Any,
    inputs: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    call: Any = _call,
) -> tf.Tensor:
    """Returns gamma * (inputs - mean) / sqrt(variance + epsilon) + beta."""
    is_float = inputs.dtype.is_floating
    x = inputs if is_float else tf.cast(inputs, tf.float32)
    x, order = _channels_last(layer, x)
    n_channels = layer.moving_mean.shape.num_elements()
    times = _largest_divisor(x, n_channels, max(_MAX_ROW // n_channels, 1))
    # As vectors: Keras 2 may normalize several axes.
    given = mean, variance, layer.gamma, layer.beta
    outputs = call(
        _normalized_rows,
        tf.reshape(x, [-1, times * n_channels]),
        *(each if each is None else tf.reshape(each, [-1]) for each in given),
        epsilon=float(layer.epsilon),
    )
    outputs = tf.reshape(outputs, tf.shape(x))
    if order is not None:
        outputs = tf.transpose(outputs, np.argsort(order))
    outputs.set_shape(inputs.shape)
    return outputs if is_float else tf.cast(outputs, layer.compute_dtype)


def _moments_of_blocks(
    blocks: tf.Tensor, counted: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns count, mean and variance of [block, sample, channel]."""
    if counted is None:
        *samples, n_channels = tf.unstack(tf.shape(blocks, tf.int64))
        n_samples = tf.cast(tf.reduce_prod(samples), tf.float64)
        count = tf.fill([n_channels], n_samples)
    else:
        count = tf.reduce_sum(tf.cast(counted, tf.float64), [0, 1])

    def means(blocks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the means of values and squares, and stores no squares."""
        if counted is not None:
            blocks = tf.where(counted, blocks, tf.zeros_like(blocks))
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
    dtype = _dtype_of_sums(rows)
    times = tf.shape(rows)[1] // tf.size(scale)
    scale, offset = (
        tf.tile(tf.cast(each, dtype), [times]) for each in (scale, offset)
    )
    return tf.cast(tf.cast(rows, dtype) * scale + offset, rows.dtype)


def _dtype_of_sums(x: tf.Tensor) -> tf.DType:
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def channel_axes(layer: Any, rank: int) -> list[int]:
    """Returns the axes of inputs of `rank` that a layer has statistics for."""
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    # Keras 2 counts an axis of virtual batches in, which inputs do not have.
    has_virtual = getattr(layer, "virtual_batch_size", None) is not None
    return sorted((axis - has_virtual) % rank for axis in axes)


def _channels_last(
    layer: Any, inputs: tf.Tensor
) -> tuple[tf.Tensor, list[int] | None]:
    """Returns `inputs`, channels last, and the order of its axes if changed."""
    rank = inputs.shape.rank
    axes = channel_axes(layer, rank)
    order = [axis for axis in range(rank) if axis not in axes] + axes
    if order == [*range(rank)]:
        return inputs, None
    return tf.transpose(inputs, order), order


def _largest_divisor(x: tf.Tensor, n_channels: int, at_most: int) -> int:
    """Returns a divisor of the known number of samples in an image, or 1."""
    sizes = reversed(x.shape[1:].as_list())
    known = list(itertools.takewhile(lambda size: size is not None, sizes))
    samples = max(int(np.prod(known)) // n_channels, 1)
    divisors = range(min(samples, at_most), 0, -1)
    return next((each for each in divisors if samples % each == 0), 1)


class Statistics(NamedTuple):
    """The moments of all samples that a pass has shown to a layer."""

    n_updates: Any
    n_samples: Any
    mean: np.ndarray
    variance: np.ndarray
    mean_of_variances: np.ndarray


class Accumulators:
    """Merges batches on the device, in one variable of float64.

    Its rows are the fields of `Statistics`, its columns all channels.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self._channels = channels
        shape = [len(Statistics._fields), sum(channels)]
        self._table = variables_lib.local_variable(
            tf.zeros(shape, tf.float64), "accumulators", None
        )

    def reset(self) -> None:
        """Forgets all samples."""
        self._table.assign(tf.zeros_like(self._table))

    def merge(self, batches: Sequence[Sequence[Moments]]) -> None:
        for one_of_each in itertools.zip_longest(*batches):
            of_all = (
                batch or Moments(*[tf.zeros([n_channels], tf.float64)] * 3)
                for batch, n_channels in zip(one_of_each, self._channels)
            )
            batch = Moments(*(tf.concat(each, 0) for each in zip(*of_all)))
            n_updates, *known, sum_of_variances = tf.unstack(self._table)
            rows = [
                n_updates + tf.cast(batch.count > 0.0, tf.float64),
                *Moments(*known).merge(batch),
                sum_of_variances + batch.variance,
            ]
            self._table.assign(tf.stack(rows))

    def read(self) -> list[Statistics]:
        table = self._table.numpy()
        table[-1] /= np.maximum(table[0], 1.0)
        ends = np.cumsum(self._channels)[:-1]
        return [
            Statistics(n_updates.max(), n_samples.max(), *vectors)
            for n_updates, n_samples, *vectors in np.split(table, ends, axis=1)
        ]
