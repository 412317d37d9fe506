"""The moments of a batch and normalizing by them, in few passes over it.

Three passes: a sum, a sum of squares, and the normalizing. They have no
gradient that is of use, and are for the refit alone.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from swa_tf import _moments

# Sums run over blocks of so many samples at most in float32, and over the
# blocks in float64. A float32 sum of n terms of one sign is off by at most
# (n - 1) * 2^-24 of itself, here 3.8e-6. That is where all terms are equal;
# otherwise the errors of a block and those of many blocks mostly cancel, and
# 1e-7 of it is what is left in the tests, where a float32 sum over the whole
# batch is off by up to 8e-4.
_BLOCK = 64

# With u the relative error of the mean of squares, by the above,
#
#     variance = mean of squares - mean^2
#
# is off by at most u * (1 + mean^2 / variance) of itself. Where mean^2 is over
# 8 times the variance of any channel, it is computed from the deviations
# instead; so the factor is at most 9.
_FAR = 9.0

# Parameters of few channels are repeated to about so many: TensorFlow's
# kernels are slow where their innermost dimension is short.
_WIDE = 1024

# cuDNN takes no smaller one.
_EPSILON = 1.001e-5


def batch_moments(layer: Any, inputs: Any, mask: Any) -> _moments.Moments:
    """The moments of one batch; nearly all as exact as from deviations."""
    if mask is not None or not _is_quick(layer, inputs):
        return _moments.batch_moments(layer, inputs, mask)
    x = tf.cast(inputs, tf.float32)
    channels = x.shape[-1]
    blocks = tf.reshape(x, [-1, _divisor(x, _BLOCK), channels])
    count = tf.cast(tf.size(x, tf.int64) // channels, tf.float64)
    sums = tf.cast(tf.reduce_sum(blocks, 1), tf.float64)
    mean = tf.math.divide_no_nan(tf.reduce_sum(sums, 0), count)
    norms = tf.cast(tf.math.reduce_euclidean_norm(blocks, 1), tf.float64)
    square = tf.math.divide_no_nan(tf.reduce_sum(tf.square(norms), 0), count)
    variance = square - tf.square(mean)
    # False also where the squares are infinite.
    near = tf.reduce_all(square - _FAR * variance <= 0.0)
    mean, variance = tf.cond(
        near,
        lambda: (mean, variance),
        lambda: _from_deviations(x, tf.cast(mean, tf.float32), count),
    )
    return _moments.Moments(count, mean, tf.maximum(variance, 0.0))


def normalize(layer: Any, inputs: Any, mean: Any, variance: Any) -> Any:
    """gamma * (inputs - mean) / sqrt(variance + epsilon) + beta"""
    if not _is_quick(layer, inputs):
        return _moments.normalize(layer, inputs, mean, variance)
    x = tf.cast(inputs, tf.float32)
    scale = tf.math.rsqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        scale *= tf.cast(layer.gamma, scale.dtype)
    offset = tf.zeros_like(mean) if layer.beta is None else layer.beta
    times = _repeats(x)
    wide, mean, scale, offset = (
        tf.tile(tf.cast(each, tf.float32), [times])
        for each in (tf.ones_like(mean), mean, scale, offset)
    )
    # The kernel of inference does it in one pass, and subtracts the mean
    # first. It is given a variance of 1, which leaves the scale to the above.
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [-1, 1, 1, times * x.shape[-1]]),
        scale=scale,
        offset=offset,
        mean=mean,
        variance=wide - _EPSILON,
        epsilon=_EPSILON,
        is_training=False,
    )[0]
    outputs = tf.reshape(outputs, tf.shape(inputs))
    outputs.set_shape(inputs.shape)
    return tf.cast(outputs, inputs.dtype)


def _is_quick(layer: Any, inputs: Any) -> bool:
    """Whether `inputs` are images or the like, not float64, channels last."""
    return (
        inputs.dtype != tf.float64
        and _moments.channel_axes(layer, inputs) == [inputs.shape.rank - 1]
        and _divisor(inputs, _BLOCK) > 1
    )


def _from_deviations(
    x: tf.Tensor, center: tf.Tensor, count: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance, from the deviations from about the mean."""
    times = _repeats(x)
    deviations = tf.reshape(x, [-1, times * x.shape[-1]]) - tf.tile(
        center, [times]
    )

    def mean_of(values: tf.Tensor) -> tf.Tensor:
        blocks = tf.reshape(values, [-1, _divisor(x, _BLOCK), x.shape[-1]])
        sums = tf.cast(tf.reduce_sum(blocks, 1), tf.float64)
        return tf.math.divide_no_nan(tf.reduce_sum(sums, 0), count)

    rest = mean_of(deviations)
    variance = mean_of(tf.square(deviations)) - tf.square(rest)
    return tf.cast(center, tf.float64) + rest, variance


def _repeats(x: tf.Tensor) -> int:
    return _divisor(x, max(_WIDE // x.shape[-1], 1))


def _divisor(x: tf.Tensor, at_most: int) -> int:
    """The largest divisor of the number of samples in an image of `x`.

    1 where their number is not known before the graph runs.
    """
    sizes = x.shape[1:-1]
    if None in sizes:
        sizes = sizes[-1:] if sizes[-1] else []
    samples = 1
    for size in sizes:
        samples *= size
    divisors = range(min(samples, at_most), 0, -1)
    return next((each for each in divisors if samples % each == 0), 1)
