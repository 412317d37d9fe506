"""Moments of batches, how they merge, and normalizing by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class Moments(NamedTuple):
    """Count, mean and variance of samples, a channel each, in float64."""

    count: Any
    mean: Any
    variance: Any

    def merge(self, other: Moments) -> Moments:
        """The moments of both lots of samples together (Chan et al.)."""
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


_LONG = 1025


def batch_moments(layer: Any, inputs: Any, mask: Any) -> Moments:
    """The moments of one batch, computed as exactly as float32 inputs allow.

    Sums are taken in float64, but for a first sum over an axis of at most
    1,024 in float32, for speed: a float32 sum of 10^5 numbers, as TensorFlow's
    own kernels take it, loses three digits. The deviations are from the mean,
    so a mean that is large beside them costs nothing.
    """
    x = _at_least_float32(inputs)
    channels = channel_axes(layer, x)
    axes = [axis for axis in range(x.shape.rank) if axis not in channels]
    if mask is None:
        sizes = [tf.shape(x, tf.int64)[axis] for axis in axes]
        count = tf.cast(tf.reduce_prod(sizes), tf.float64)
        weights = None
    else:
        if channels != [x.shape.rank - 1]:
            raise ValueError(
                "`mask` needs a batch-norm layer whose `axis` is the last. "
                f"Received: axis={layer.axis} in layer {layer.name}"
            )
        weights = tf.cast(tf.expand_dims(mask, -1), x.dtype)
        count = tf.reduce_sum(tf.cast(weights, tf.float64))

    def mean_of(values: tf.Tensor) -> tf.Tensor:
        if weights is not None:
            values = values * weights
        if len(axes) > 1 and (x.shape[axes[-1]] or _LONG) < _LONG:
            values = tf.reduce_sum(values, axes[-1], keepdims=True)
        total = tf.reduce_sum(tf.cast(values, tf.float64), axes)
        return tf.math.divide_no_nan(total, count)

    mean = mean_of(x)
    rounded = tf.cast(mean, x.dtype)
    center = tf.reshape(rounded, _broadcast_shape(layer, x))
    variance = mean_of(tf.math.squared_difference(x, center)) - tf.square(
        mean - tf.cast(rounded, tf.float64)
    )
    shape = layer.moving_mean.shape
    return Moments(
        count,
        tf.reshape(mean, shape),
        tf.reshape(tf.maximum(variance, 0.0), shape),
    )


def normalize(layer: Any, inputs: Any, mean: Any, variance: Any) -> Any:
    """gamma * (inputs - mean) / sqrt(variance + epsilon) + beta"""
    x = _at_least_float32(inputs)
    shape = _broadcast_shape(layer, x)

    def fit(parameter: Any) -> Any:
        if parameter is None:
            return None
        return tf.reshape(tf.cast(parameter, x.dtype), shape)

    outputs = tf.nn.batch_normalization(
        x,
        fit(mean),
        fit(variance),
        fit(layer.beta),
        fit(layer.gamma),
        layer.epsilon,
    )
    return tf.cast(outputs, inputs.dtype)


def _at_least_float32(inputs: Any) -> tf.Tensor:
    return tf.cast(
        inputs, tf.float64 if inputs.dtype == tf.float64 else tf.float32
    )


def channel_axes(layer: Any, x: tf.Tensor) -> list[int]:
    """The axes of `x` along which the parameters of the layer lie."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return sorted(axis % x.shape.rank for axis in axes)


def _broadcast_shape(layer: Any, x: tf.Tensor) -> list[int]:
    """The shape in which a parameter of the layer multiplies `x`."""
    shape = list(layer.moving_mean.shape)
    if len(shape) == x.shape.rank:  # a layer of Keras 2 with several axes
        return shape
    channels = channel_axes(layer, x)
    return [shape[0] if axis in channels else 1 for axis in range(x.shape.rank)]
