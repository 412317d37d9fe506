"""Learning-rate plans for training whose weights are averaged."""

from __future__ import annotations

import math
import numbers
from typing import Any

import tensorflow as tf

from swa_tf import _compat


def _check_rate(name: str, rate: Any) -> float:
    if not (isinstance(rate, numbers.Real) and 0 <= float(rate) < math.inf):
        raise ValueError(
            f"`{name}` must be finite and >= 0. Received: {name}={rate!r}"
        )
    return float(rate)


def _check_steps(name: str, steps: Any) -> int:
    if not (isinstance(steps, numbers.Integral) and int(steps) >= 0):
        raise ValueError(
            f"`{name}` must be an integer >= 0. Received: {name}={steps!r}"
        )
    return int(steps)


@_compat.register
class LinearRamp(tf.keras.optimizers.schedules.LearningRateSchedule):
    """One rate, then a straight line to another, then that one.

        rate(step) = initial                                if step <= start
        rate(step) = initial + (final - initial) * f        between
        rate(step) = final                    if step >= start + ramp_steps

    with `f = (step - start) / ramp_steps`. Both ends are met exactly, and the
    rate is never outside them. With `ramp_steps` 0 it jumps after
    `ramp_start`: that step still has the initial rate.

    >>> rate = swa_tf.schedules.LinearRamp(0.5, 0.1, ramp_start=2, ramp_steps=4)
    >>> [round(float(rate(step)), 3) for step in range(8)]
    [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]

    The line is computed in float64, which counts steps exactly up to 2^53,
    and the rate is rounded once at the end. Float32 counts to 2^24 only: an
    optimizer that hands its step over as float32 (the legacy ones of Keras
    and those of TensorFlow Addons do) is off by at most one part in 2^24 of
    the step from there on, and the line goes in steps that much wider.

    Args:
        initial_learning_rate: The rate up to and including step `ramp_start`,
            a finite float >= 0.
        final_learning_rate: The rate from step `ramp_start + ramp_steps` on,
            a finite float >= 0; with `ramp_steps` 0, from the step after.
        ramp_start: The last step before the ramp, an integer >= 0.
        ramp_steps: The ramp's length in steps, an integer >= 0.
        name: The name of the schedule's operations.

    Raises:
        ValueError: If a rate is negative or not finite, or a number of steps
            negative or not an integer.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        final_learning_rate: float,
        ramp_start: int,
        ramp_steps: int,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.initial_learning_rate = _check_rate(
            "initial_learning_rate", initial_learning_rate
        )
        self.final_learning_rate = _check_rate(
            "final_learning_rate", final_learning_rate
        )
        self.ramp_start = _check_steps("ramp_start", ramp_start)
        self.ramp_steps = _check_steps("ramp_steps", ramp_steps)
        self.name = name

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate at `step`, a scalar of Keras's float type."""
        with tf.name_scope(self.name or "LinearRamp"):
            initial = tf.constant(self.initial_learning_rate, tf.float64)
            final = tf.constant(self.final_learning_rate, tf.float64)
            done = tf.cast(step, tf.float64) - self.ramp_start
            # The line is never used where `ramp_steps` is 0.
            line = initial + (final - initial) * done / max(self.ramp_steps, 1)
            rate = tf.where(done < self.ramp_steps, line, final)
            rate = tf.where(done <= 0, initial, rate)
            return tf.cast(rate, tf.keras.backend.floatx())

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "final_learning_rate": self.final_learning_rate,
            "ramp_start": self.ramp_start,
            "ramp_steps": self.ramp_steps,
            "name": self.name,
        }


def published_plan(
    learning_rate: float,
    swa_learning_rate: float,
    swa_start: int,
    total_steps: int,
) -> LinearRamp:
    """The plan of the first TensorFlow SWA: high, a ramp, a last tenth low.

    `learning_rate` up to step `swa_start`, a straight line to
    `swa_learning_rate` at step 9/10 * total_steps (rounded down), and
    `swa_learning_rate` from there on. Weights are averaged from `swa_start`.

    >>> rate = swa_tf.schedules.published_plan(0.5, 0.1, 10, total_steps=20)
    >>> [round(float(rate(step)), 3) for step in (0, 10, 14, 18, 20)]
    [0.5, 0.5, 0.3, 0.1, 0.1]

    Where SWA starts in the last tenth there is no room for a line: the rate
    falls at once, after `swa_start`.

    Args:
        learning_rate: The rate before SWA, a finite float >= 0.
        swa_learning_rate: The rate at the end, a finite float >= 0.
        swa_start: The step at which SWA starts, an integer >= 0.
        total_steps: The length of the training in steps, an integer.

    Returns:
        The `LinearRamp` of this plan.

    Raises:
        ValueError: If an argument is out of its range, or `swa_start` is
            greater than `total_steps`.

    Source: https://github.com/JGuillaumin/swa-tf (2019), examples/train.py,
    which is one step above `learning_rate` at one place and divides by zero
    where SWA starts as the ramp ends; this does neither.
    """
    total_steps = _check_steps("total_steps", total_steps)
    if _check_steps("swa_start", swa_start) > total_steps:
        raise ValueError(
            "`swa_start` must be <= `total_steps`. Received: "
            f"swa_start={swa_start!r}, total_steps={total_steps!r}"
        )
    ramp_end = 9 * total_steps // 10
    return LinearRamp(
        learning_rate,
        swa_learning_rate,
        ramp_start=swa_start,
        ramp_steps=max(ramp_end - swa_start, 0),
    )
