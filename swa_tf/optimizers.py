"""Optimizers whose weight decay means the same on every stack.

    w <- w - weight_decay * w

beside the step, not multiplied by the learning rate: the meaning of the
published tables, of TensorFlow Addons, and of Loshchilov and Hutter with the
schedule multiplier at 1. Keras's own is `learning_rate * weight_decay * w`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from swa_tf import _checks, _compat

_addons = _compat.tensorflow_addons()
_SGD: Any = _addons.optimizers.SGDW if _addons else tf.keras.optimizers.SGD
_Adam: Any = _addons.optimizers.AdamW if _addons else tf.keras.optimizers.Adam
_Mixin: Any = object  # Tells mypy that `super()` is more than `object`.


def _number(
    name: str, value: Any, wanted: str, holds: Callable[[float], bool]
) -> float:
    """A finite `value` of which `holds` is true, as a float."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        wanted = "a finite number"
    elif holds(float(value)):
        return float(value)
    raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value!r}")


class _DecoupledDecay(_Mixin):
    """What the optimizers share: which weights decay, and by how much."""

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float,
        weight_decay_on: str,
        scale_decay_by_learning_rate: bool,
        **kwargs: Any,
    ) -> None:
        _checks.choice("weight_decay_on", weight_decay_on, ("all", "kernels"))
        if isinstance(learning_rate, numbers.Real):
            learning_rate = _number(
                "learning_rate", learning_rate, ">= 0", lambda x: x >= 0
            )
        elif not (callable(learning_rate) or hasattr(learning_rate, "dtype")):
            raise TypeError(
                "`learning_rate` must be a number or a `LearningRateSchedule`. "
                f"Received: learning_rate={learning_rate!r}"
            )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=_number(
                "weight_decay", weight_decay, ">= 0", lambda x: x >= 0
            ),
            **kwargs,
        )
        self.weight_decay_on = weight_decay_on
        self.scale_decay_by_learning_rate = _checks.boolean(
            "scale_decay_by_learning_rate", scale_decay_by_learning_rate
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight_decay_on": self.weight_decay_on,
            "scale_decay_by_learning_rate": self.scale_decay_by_learning_rate,
        }

    def _decays(self, variable: tf.Variable) -> bool:
        return self.weight_decay_on == "all" or len(variable.shape) >= 2


class _KerasDecay(_DecoupledDecay):
    """Decays within Keras's update of one variable, on its own device."""

    def update_step(
        self, gradient: Any, variable: tf.Variable, *learning_rate: Any
    ) -> None:
        if self._decays(variable) and self._use_weight_decay(variable):
            decay = self.weight_decay
            if self.scale_decay_by_learning_rate:
                decay = decay * tf.cast(self.learning_rate, variable.dtype)
            variable.assign_sub(decay * variable)
        # A sparse gradient becomes the dense one that it stands for.
        gradient = tf.convert_to_tensor(gradient)
        super().update_step(gradient, variable, *learning_rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Keeps Keras from decaying once more, by its own rule."""


class _AddonsDecay(_DecoupledDecay):
    """Decays as TensorFlow Addons does, by the options that we add to it."""

    def _do_use_weight_decay(self, var: tf.Variable) -> bool:
        # Addons forgets that a replica's copy belongs to a listed variable.
        whole = getattr(var.handle, "_distributed_container", lambda: var)()
        return self._decays(var) and super()._do_use_weight_decay(whole)

    def _decayed_wd(self, var_dtype: tf.DType) -> tf.Tensor:
        decay = super()._decayed_wd(var_dtype)
        if self.scale_decay_by_learning_rate:
            decay = decay * self._decayed_lr(var_dtype)
        return decay

    def _resource_apply_sparse_duplicate_indices(
        self,
        grad: tf.Tensor,
        var: tf.Variable,
        indices: tf.Tensor,
        **kwargs: Any,
    ) -> Any:
        sparse = tf.IndexedSlices(grad, indices, dense_shape=tf.shape(var))
        dense = tf.convert_to_tensor(sparse)
        return self._resource_apply_dense(dense, var, **kwargs)


_Decay: Any = _AddonsDecay if _addons else _KerasDecay


@_compat.register
class MomentumW(_Decay, _SGD):
    """Gradient descent with momentum and decoupled weight decay.

        w <- w - weight_decay * w
        velocity <- momentum * velocity - learning_rate * gradient
        w <- w + velocity

    and with `nesterov`, instead of the last line,

        w <- w + momentum * velocity - learning_rate * gradient

    A weight of 1 with no gradient to follow keeps 3/4 of itself a step:

    >>> w = tf.Variable([[1.0]])
    >>> optimizer = swa_tf.optimizers.MomentumW(weight_decay=0.25)
    >>> for _ in range(2):
    ...     _ = optimizer.apply_gradients([(tf.zeros([1, 1]), w)])
    ...     print(float(w[0, 0]))
    0.75
    0.5625

    On TensorFlow 2.15 with TensorFlow Addons it is a
    `tfa.optimizers.SGDW`, elsewhere a `tf.keras.optimizers.SGD`; the numbers
    are the same. Its decay does not shrink with a schedule: what is right at
    a high rate can be too much at a low one (`scale_decay_by_learning_rate`).
    A variable without a gradient does not decay. A sparse gradient (of an
    embedding) counts as the dense one it stands for: every row decays and
    keeps its momentum, also one that the batch did not touch.

    `exclude_from_weight_decay` is Keras's method of that name, to be called
    before the first step; under TensorFlow Addons it is an argument instead,
    a list of regular expressions for names. `weight_decay` reads as it was
    given; under TensorFlow Addons it becomes a variable, and Keras 2 leaves
    the velocity out of `.keras` files (not of checkpoints and `.h5` files).

    Args:
        learning_rate: A float >= 0, or a
            `tf.keras.optimizers.schedules.LearningRateSchedule`.
        momentum: A float between 0 and 1.
        weight_decay: A float >= 0: the part of a weight that one step takes
            away. Multiplied by the learning rate where
            `scale_decay_by_learning_rate` is set.
        nesterov: Whether to look one step ahead.
        weight_decay_on: "all", or "kernels": only variables of rank 2 and
            more, which are kernels and embeddings, so neither biases nor the
            scales and offsets of batch norm.
        scale_decay_by_learning_rate: Whether to decay as Keras does, by
            `w <- w - learning_rate * weight_decay * w`.
        name: The optimizer's name.
        **kwargs: What else the base class takes, `clipnorm` for one.

    Raises:
        ValueError: If a number is out of its range or not finite, or
            `weight_decay_on` is neither of its values.
        TypeError: If `learning_rate` is no number and no schedule, or what is
            to be True or False is neither.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization"
    (https://arxiv.org/abs/1711.05101), algorithm 1, with eta_t = 1 for the
    decay.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        weight_decay_on: str = "all",
        scale_decay_by_learning_rate: bool = False,
        name: str = "MomentumW",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            weight_decay_on=weight_decay_on,
            scale_decay_by_learning_rate=scale_decay_by_learning_rate,
            momentum=_number(
                "momentum", momentum, "between 0 and 1", lambda x: 0 <= x <= 1
            ),
            nesterov=_checks.boolean("nesterov", nesterov),
            name=name,
            **kwargs,
        )


@_compat.register
class AdamW(_Decay, _Adam):
    """Adam with decoupled weight decay.

        w <- w - weight_decay * w
        m <- beta_1 * m + (1 - beta_1) * gradient
        v <- beta_2 * v + (1 - beta_2) * gradient^2
        rate <- learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)
        w <- w - rate * m / (sqrt(v) + epsilon)

    where t is 1 in the first step. With `amsgrad` the largest v so far stands
    in its place in the last line.

    >>> w = tf.Variable([[2.0]])
    >>> optimizer = swa_tf.optimizers.AdamW(0.5, weight_decay=0.25)
    >>> _ = optimizer.apply_gradients([(tf.constant([[10.0]]), w)])
    >>> print(f"{float(w[0, 0]):.4f}")  # 2 - 0.25 * 2 - 0.5
    1.0000

    Everything else is as in `MomentumW`; the base class is
    `tfa.optimizers.AdamW` or `tf.keras.optimizers.Adam`. It is not
    `tf.keras.optimizers.AdamW`, which multiplies the decay by the learning
    rate: its `weight_decay=0.004` at the rate 0.001 is 4e-6 here.

    Args:
        learning_rate: A float >= 0, or a
            `tf.keras.optimizers.schedules.LearningRateSchedule`.
        beta_1: A float >= 0 and < 1: what m keeps of itself in a step.
        beta_2: A float >= 0 and < 1: what v keeps of itself in a step.
        epsilon: A float > 0, that keeps the last line from dividing by zero.
        amsgrad: Whether to use the AMSGrad variant.
        weight_decay: As in `MomentumW`.
        weight_decay_on: As in `MomentumW`.
        scale_decay_by_learning_rate: As in `MomentumW`.
        name: The optimizer's name.
        **kwargs: What else the base class takes, `clipnorm` for one.

    Raises:
        ValueError: If a number is out of its range or not finite, or
            `weight_decay_on` is neither of its values.
        TypeError: If `learning_rate` is no number and no schedule, or what is
            to be True or False is neither.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization"
    (https://arxiv.org/abs/1711.05101), algorithm 2, with eta_t = 1 for the
    decay; epsilon stands where Kingma and Ba have "epsilon hat"
    (https://arxiv.org/abs/1412.6980, before section 2.1).
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float = 1e-4,
        weight_decay_on: str = "all",
        scale_decay_by_learning_rate: bool = False,
        name: str = "AdamW",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            weight_decay_on=weight_decay_on,
            scale_decay_by_learning_rate=scale_decay_by_learning_rate,
            beta_1=_number(
                "beta_1", beta_1, ">= 0 and < 1", lambda x: 0 <= x < 1
            ),
            beta_2=_number(
                "beta_2", beta_2, ">= 0 and < 1", lambda x: 0 <= x < 1
            ),
            epsilon=_number("epsilon", epsilon, "> 0", lambda x: x > 0),
            amsgrad=_checks.boolean("amsgrad", amsgrad),
            name=name,
            **kwargs,
        )
