"""The one equation, rounded so that the errors of many updates cancel."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

# In eager mode, kernels take half of the time of Python's operators.
_add, _subtract = tf.raw_ops.AddV2, tf.raw_ops.Sub
_multiply, _where = tf.raw_ops.Mul, tf.raw_ops.SelectV2
_and, _or = tf.raw_ops.BitwiseAnd, tf.raw_ops.BitwiseOr


def moved(
    average: tf.Tensor,
    weight: tf.Tensor,
    c: Any,
    threshold: Any,
    zero: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns average + c * (weight - average); with c = 1 the weight itself.

    `c`, in float64, and `threshold` are tensors, or numbers in eager mode. In
    a graph `zero` is an integer 0 whose value XLA cannot know.
    """
    own_c = _of_dtype(c, average.dtype)
    step = _multiply(x=own_c, y=_subtract(x=weight, y=average))
    if zero is not None:
        step = rounded(step, zero)
    if tf.is_tensor(threshold) or threshold <= 0.5:
        total = unbiased_sum(average, step, threshold)
        if zero is not None:
            # The same bits, but faster: XLA moves the choice out of its loop.
            total = tf.where(threshold > 0.5, average + step, total)
    else:
        total = _add(x=average, y=step)
    if isinstance(c, float) and c != 1.0:
        return total
    return tf.where(tf.equal(c, 1.0), weight, total)


def settings(
    c: tf.Tensor, n_models: tf.Tensor
) -> tuple[Any, Any, tf.Tensor | None]:
    """Returns `c`, `threshold` and `zero` as `moved` takes them."""
    if tf.executing_eagerly():
        # As numbers that Python knows, they save operations.
        return c.numpy(), threshold(n_models).numpy(), None
    zero = tf.cast(tf.equal(n_models, n_models.dtype.min), tf.int32)
    return c, threshold(n_models), zero


def threshold(n_models: tf.Tensor) -> tf.Tensor:
    """Returns the threshold for the sum after `n_models`, as float64.

    In [0, 1/2), or infinite for a sum rounded to nearest: that loses at most
    half a unit, which no threshold over 1/2 rounds up.
    """
    # The golden ratio's multiples fill (0, 1) evenly, whichever their number.
    part = tf.math.floormod(
        tf.cast(n_models, tf.float64) * 0.6180339887498949, 1.0
    )
    return tf.where(part < 0.5, part, tf.constant(math.inf, tf.float64))


def unbiased_sum(
    average: tf.Tensor, step: tf.Tensor, threshold: Any
) -> tf.Tensor:
    """Returns the sum, rounded so that the errors of many sums cancel.

    Rounding to nearest loses every step below half a unit in the last place
    (ulp). Here the part that is lost becomes a whole ulp if it is more than
    `threshold` of one, else nothing. With thresholds spread evenly over (0, 1)
    that is right on average. An exact sum stays exact.
    """
    dtype = average.dtype
    exponent, epsilon, sign_bit = 0x7F800000, 2.0**-23, -(2**31)
    if dtype == tf.float64:
        exponent, epsilon, sign_bit = 0x7FF0000000000000, 2.0**-52, -(2**63)
    total = _add(x=average, y=step)
    lost = _subtract(x=step, y=_subtract(x=total, y=average))
    # The ulp of `total` is `epsilon` times the power of two in it. Operations
    # are few, since they take the time where memory is fast.
    bits, lost_bits = _bits(total), _bits(lost)
    exponent_mask = tf.constant(exponent, bits.dtype)
    power = tf.bitcast(_and(x=bits, y=exponent_mask), dtype)
    limit = _multiply(x=_of_dtype(epsilon * threshold, dtype), y=power)
    up = tf.greater(tf.raw_ops.Abs(x=lost), limit)
    # Not `bits.dtype.min`, in which TensorFlow swallows interrupts.
    sign = _and(x=lost_bits, y=tf.constant(sign_bit, bits.dtype))
    ulp_bits = _bits(_multiply(x=tf.constant(epsilon, dtype), y=power))
    ulp = tf.bitcast(_or(x=ulp_bits, y=sign), dtype)
    return _where(condition=up, t=_add(x=total, y=ulp), e=total)


def _of_dtype(value: Any, dtype: tf.DType) -> tf.Tensor:
    if tf.is_tensor(value):
        return tf.cast(value, dtype)
    return tf.constant(value, dtype)


def _bits(x: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(x, tf.int64 if x.dtype == tf.float64 else tf.int32)


def rounded(product: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """Returns the product, in a form that no compiler fuses with a sum.

    A fused multiply-add rounds once where TensorFlow's kernels round twice: an
    average would depend on how it was computed.
    """
    bits = _bits(product)
    return tf.bitcast(bits ^ tf.cast(zero, bits.dtype), product.dtype)
