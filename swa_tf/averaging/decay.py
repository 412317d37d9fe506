"""The `decay` and the `num_updates` of an exponential average, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf.support import checks, compat


def float32(value: Any) -> Any:
    """Rounds a number or scalar to float32, as TensorFlow's class does."""
    if isinstance(value, (int, float)):
        with np.errstate(over="ignore"):  # the caller checks for infinity
            return np.float32(value)
    return tf.cast(value, tf.float32)


class Argument(NamedTuple):
    """A scalar in [0, `below`): a number, or a tensor read in each update."""

    name: str
    wanted: str
    below: float
    scalar: str = "a scalar"
    rounded: Callable[[Any], Any] = float32

    def given(self, value: Any) -> Any:
        """Returns `value`, or raises if it is known already to be wrong."""
        value = compat.tf_variable(value)
        if value is None:
            return None
        if tf.is_tensor(value):
            if value.shape.rank not in (0, None):
                raise checks.wrong(self.name, self.scalar, value)
            dtype = value.dtype.base_dtype
            if not (dtype.is_floating or dtype.is_integer):
                raise checks.wrong(self.name, self.wanted, value)
        else:
            if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
                value = value.item()
            wanted = f"a scalar tensor or {self.wanted}"
            value = checks.real(self.name, value, wanted)
        if not tf.is_tensor(value) or tf.executing_eagerly():
            self.check(value)
        return value

    def check(self, value: Any) -> list[tf.Operation]:
        """Raises unless `value` is right; in a graph, gives assertions."""
        right = self.allows(value)
        if tf.TensorShape(right.shape).rank not in (0, None):
            raise checks.wrong(self.name, self.scalar, value)
        if tf.is_tensor(right) and not hasattr(right, "numpy"):
            name = f"{self.name}_must_be_a_scalar"
            right = tf.ensure_shape(right, [], name=name)
            message = f"`{self.name}` must be {self.wanted}. Received:"
            return [tf.debugging.Assert(right, [message, value])]
        if not right:
            raise checks.wrong(self.name, self.wanted, value)
        return []

    def read(self, value: Any) -> Any:
        """Returns `value`, rounded, once it is known to be right.

        A wrong one raises, in a graph when it runs. Where XLA leaves the error
        out it is NaN, and the update moves nothing.
        """
        with tf.control_dependencies(assertions := self.check(value)):
            rounded = self.rounded(value)
            if not assertions:
                return rounded
            return tf.where(self.allows(value), rounded, math.nan)

    def allows(self, value: Any) -> Any:
        """Whether `value` is right: a boolean tensor or one of NumPy."""
        rounded = self.rounded(value)
        return (rounded >= 0.0) & (rounded < self.below)


DECAY = Argument("decay", "a number in [0, 1), also in float32", 1.0)
NUM_UPDATES = Argument(
    "num_updates", "a finite number >= 0, also in float32", math.inf
)

_OF_MODELS = Argument(
    "decay",
    "a function whose values are in [0, 1)",
    1.0,
    "a function whose values are scalars",
    rounded=tf.identity,
)


def of_models(function: Callable[[tf.Tensor], Any], n_models: Any) -> tf.Tensor:
    """Returns the decay after `n_models`, given by a function, in float64.

    Raises unless it is a scalar in [0, 1), in a graph when it runs.
    """
    value = compat.tf_variable(function(tf.cast(n_models, tf.float64)))
    if tf.is_tensor(value):
        decay = tf.cast(value, tf.float64)
    else:
        number = checks.real("decay", value, _OF_MODELS.wanted)
        decay = tf.constant(number, tf.float64)
    return _OF_MODELS.read(decay)


def scaled_decay(decay: float, batch_size_ratio: float) -> float:
    """Returns the decay of an EMA for another batch size.

        decay^k

    with k the ratio: one step on a batch k times as large goes as far as k
    steps, so that one update must forget as much as k did. The learning rate
    is to be scaled by its own rule.

    >>> round(swa_tf.scaled_decay(0.999, 8), 6)
    0.992028

    Args:
        decay: The decay at the old batch size, in [0, 1).
        batch_size_ratio: The new batch size divided by the old, > 0; below 1
            for a smaller batch. (A `half_life` is divided by it.)

    Raises:
        ValueError: If an argument is none of these.

    References:
        Busbridge et al. 2023, How to Scale Your EMA, definition 1.2,
        https://arxiv.org/abs/2307.13813.
    """
    decay = checks.real("decay", decay, "a number in [0, 1)", lambda d: d < 1)
    return float(decay ** checks.positive("batch_size_ratio", batch_size_ratio))
