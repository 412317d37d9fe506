"""The one equation, rounded so that the errors of many updates cancel."""

from __future__ import annotations

import math

import tensorflow as tf


def moved(
    average: tf.Tensor,
    weight: tf.Tensor,
    c: tf.Tensor,
    threshold: tf.Tensor,
    zero: tf.Tensor | None = None,
) -> tf.Tensor:
    """average + c * (weight - average); with c = 1 the weight itself.

    `zero` is for code that XLA compiles: an integer 0 that XLA cannot know to
    be one.
    """
    step = tf.cast(c, average.dtype) * (weight - average)
    if zero is not None:
        step = _rounded(step, zero)
    total = unbiased_sum(average, step, threshold)
    if zero is not None:
        # The same bits; but to choose by a scalar moves out of the loop over
        # the elements, which then has but this sum for half of the models.
        total = tf.where(threshold > 0.5, average + step, total)
    return tf.where(tf.equal(c, 1.0), weight, total)


def threshold(n_models: tf.Tensor) -> tf.Tensor:
    """Where the next sum after `n_models` rounds up, as float64.

    In [0, 1/2), or infinite for a sum rounded to nearest: as that loses no more
    than half a unit, none is lost that a threshold over 1/2 would round up.
    """
    # The golden ratio's multiples fill (0, 1) evenly, whichever their number.
    part = tf.math.floormod(
        tf.cast(n_models, tf.float64) * 0.6180339887498949, 1.0
    )
    return tf.where(part < 0.5, part, tf.constant(math.inf, tf.float64))


def unbiased_sum(
    average: tf.Tensor, step: tf.Tensor, threshold: tf.Tensor
) -> tf.Tensor:
    """The sum, rounded up or down so that the errors of many sums cancel.

    Rounding to nearest loses every step below half a unit in the last place
    (ulp): after n models that is all that a weight moves by less than
    n * 2^-25 of itself, and the average stands still. Here the part that
    rounding lost is rounded in turn, up to a whole ulp where it is more than
    `threshold` of one, down to nothing otherwise. With thresholds spread
    evenly over (0, 1) that is right on average. An exact sum stays exact.
    """
    exponent, epsilon = (
        (0x7FF0000000000000, 2.0**-52)
        if average.dtype == tf.float64
        else (0x7F800000, 2.0**-23)
    )
    total = average + step
    lost = step - (total - average)
    # The ulp, the distance from |total| to the next larger float, is `epsilon`
    # of the power of two in it. In as few operations as will do: where memory
    # is fast, it is they that take the time.
    power = tf.bitcast(_bits(total) & exponent, total.dtype)
    up = tf.abs(lost) > tf.cast(epsilon * threshold, total.dtype) * power
    sign = _bits(lost) & _bits(lost).dtype.min
    ulp = tf.bitcast(_bits(epsilon * power) | sign, total.dtype)
    return tf.where(up, total + ulp, total)


def _bits(x: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(x, tf.int64 if x.dtype == tf.float64 else tf.int32)


def _rounded(product: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """The product, in a form that no compiler fuses with a sum.

    A fused multiply-add rounds once where TensorFlow's kernels round twice: an
    average would depend on how it was computed. XLA fuses a product that is
    used once, for some processors also one that is used twice as here.
    """
    bits = _bits(product)
    return tf.bitcast(bits ^ tf.cast(zero, bits.dtype), product.dtype)
