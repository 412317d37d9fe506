"""Optimizers with `w <- w - weight_decay * w` beside the step, everywhere."""

from __future__ import annotations

import numbers
from typing import Any

import tensorflow as tf

from swa_tf.support import checks, compat

_addons = compat.tensorflow_addons()
_SGD: Any = _addons.optimizers.SGDW if _addons else tf.keras.optimizers.SGD
_Adam: Any = _addons.optimizers.AdamW if _addons else tf.keras.optimizers.Adam
_Mixin: Any = object  # Tells mypy that `super()` is more than `object`.


class _DecoupledDecay(_Mixin):
    """Keeps the arguments that both optimizers have."""

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float,
        weight_decay_on: str,
        scale_decay_by_learning_rate: bool,
        **kwargs: Any,
    ) -> None:
        checks.choice("weight_decay_on", weight_decay_on, ("all", "kernels"))
        if isinstance(learning_rate, numbers.Real):
            learning_rate = float(checks.real("learning_rate", learning_rate))
        elif not (callable(learning_rate) or hasattr(learning_rate, "dtype")):
            wanted = "a number or a `LearningRateSchedule`"
            raise checks.wrong(
                "learning_rate", wanted, learning_rate, TypeError
            )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=float(checks.real("weight_decay", weight_decay)),
            **kwargs,
        )
        self.weight_decay_on = weight_decay_on
        self.scale_decay_by_learning_rate = checks.boolean(
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
    """Decays in Keras's update of one variable, on its device."""

    def update_step(
        self, gradient: Any, variable: tf.Variable, *learning_rate: Any
    ) -> None:
        # A sparse gradient has the same effect as the equal dense one.
        gradient = tf.convert_to_tensor(gradient)
        if self._decays(variable) and self._use_weight_decay(variable):
            decay = self.weight_decay
            if self.scale_decay_by_learning_rate:
                decay = decay * tf.cast(self.learning_rate, variable.dtype)
            with tf.control_dependencies([gradient]):  # not if it fails
                variable.assign_sub(decay * variable)
        super().update_step(gradient, variable, *learning_rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Keeps Keras from decaying a second time by its own rule."""


class _AddonsDecay(_DecoupledDecay):
    """Decays as TensorFlow Addons does, with our options."""

    def _do_use_weight_decay(self, var: tf.Variable) -> bool:
        # Addons does not know the copy on a replica; it lists the whole.
        whole = getattr(var.handle, "_distributed_container", lambda: var)()
        return self._decays(var) and super()._do_use_weight_decay(whole)

    def _decayed_wd(self, var_dtype: tf.DType) -> tf.Tensor:
        decay = super()._decayed_wd(var_dtype)
        if self.scale_decay_by_learning_rate:
            decay = decay * self._decayed_lr(var_dtype)
        return decay

    def _resource_apply_dense(self, grad: Any, var: Any, **kwargs: Any) -> Any:
        with tf.control_dependencies([grad]):  # not if it fails
            return super()._resource_apply_dense(grad, var, **kwargs)

    def _resource_apply_sparse_duplicate_indices(
        self, grad: Any, var: tf.Variable, indices: Any, **kwargs: Any
    ) -> Any:
        sparse = tf.IndexedSlices(grad, indices, dense_shape=tf.shape(var))
        dense = tf.convert_to_tensor(sparse)
        return self._resource_apply_dense(dense, var, **kwargs)


_Decay: Any = _AddonsDecay if _addons else _KerasDecay


@compat.register
class MomentumW(_Decay, _SGD):
    """Gradient descent with momentum and decoupled weight decay.

        w <- w - weight_decay * w
        velocity <- momentum * velocity - learning_rate * gradient
        w <- w + velocity

    and with `nesterov`, instead of the last line,

        w <- w + momentum * velocity - learning_rate * gradient

    >>> w = tf.Variable([[1.0]])
    >>> optimizer = swa_tf.optimizers.MomentumW(weight_decay=0.25)
    >>> for _ in range(2):
    ...     _ = optimizer.apply_gradients([(tf.zeros([1, 1]), w)])
    ...     print(float(w[0, 0]))
    0.75
    0.5625

    The base class is `tfa.optimizers.SGDW` on TensorFlow 2.15 with TensorFlow
    Addons, otherwise `tf.keras.optimizers.SGD`; the results are the same. The
    decay does not shrink with the rate, and can be too large at its low end:
    see `scale_decay_by_learning_rate`. A variable without a gradient does not
    decay. A sparse gradient has the effect of the equal dense one.

    `exclude_from_weight_decay` is Keras's method, to be called before the
    first step. Under TensorFlow Addons it is an argument, a list of regular
    expressions for names; `weight_decay` becomes a variable; and `.keras` files
    lack the velocity, which checkpoints and `.h5` files have.

    Args:
        learning_rate: A float >= 0, or a `LearningRateSchedule` of Keras.
        momentum: A float between 0 and 1.
        weight_decay: The part of a weight that one step removes, >= 0.
        nesterov: Whether to look one step ahead.
        weight_decay_on: "all", or "kernels": variables of rank 2 and more,
            which leaves out biases and the scales and offsets of batch norm.
        scale_decay_by_learning_rate: Whether to decay as Keras does, by
            `w <- w - learning_rate * weight_decay * w`.
        name: The optimizer's name.
        **kwargs: Other arguments of the base class, such as `clipnorm`.

    Raises:
        ValueError: If a number, or `weight_decay_on`, is none of the above.
        TypeError: If another argument is of another type.

    Source: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101, algorithm
    1, with eta_t = 1 for the decay.
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
        wanted = "between 0 and 1"
        momentum = checks.real("momentum", momentum, wanted, lambda m: m <= 1)
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            weight_decay_on=weight_decay_on,
            scale_decay_by_learning_rate=scale_decay_by_learning_rate,
            momentum=float(momentum),
            nesterov=checks.boolean("nesterov", nesterov),
            name=name,
            **kwargs,
        )


@compat.register
class AdamW(_Decay, _Adam):
    """Adam with decoupled weight decay.

        w <- w - weight_decay * w
        m <- beta_1 * m + (1 - beta_1) * gradient
        v <- beta_2 * v + (1 - beta_2) * gradient^2
        rate <- learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)
        w <- w - rate * m / (sqrt(v) + epsilon)

    where t is 1 in the first step. With `amsgrad` the last line uses the
    largest v so far.

    >>> w = tf.Variable([[2.0]])
    >>> optimizer = swa_tf.optimizers.AdamW(0.5, weight_decay=0.25)
    >>> _ = optimizer.apply_gradients([(tf.constant([[10.0]]), w)])
    >>> print(f"{float(w[0, 0]):.4f}")  # 2 - 0.25 * 2 - 0.5
    1.0000

    The base class is `tfa.optimizers.AdamW` or `tf.keras.optimizers.Adam`; all
    else is as in `MomentumW`. The `weight_decay=0.004` of Keras's own `AdamW`,
    which multiplies it by the learning rate, is 4e-6 here at the rate 0.001.

    Args:
        learning_rate: As in `MomentumW`.
        beta_1: The part of m that is kept in a step, a float >= 0 and < 1.
        beta_2: The part of v that is kept in a step, a float >= 0 and < 1.
        epsilon: A float > 0, against division by zero.
        amsgrad: Whether to use the AMSGrad variant.
        weight_decay: As in `MomentumW`.
        weight_decay_on: As in `MomentumW`.
        scale_decay_by_learning_rate: As in `MomentumW`.
        name: The optimizer's name.
        **kwargs: As in `MomentumW`.

    Raises:
        ValueError, TypeError: As in `MomentumW`.

    Source: https://arxiv.org/abs/1711.05101, algorithm 2, with eta_t = 1 for
    the decay; epsilon is the "epsilon hat" of Kingma and Ba
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
            beta_1=_below_1("beta_1", beta_1),
            beta_2=_below_1("beta_2", beta_2),
            epsilon=checks.positive("epsilon", epsilon),
            amsgrad=checks.boolean("amsgrad", amsgrad),
            name=name,
            **kwargs,
        )


def _below_1(name: str, value: Any) -> float:
    return float(checks.real(name, value, ">= 0 and < 1", lambda b: b < 1))
