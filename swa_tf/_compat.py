"""Which TensorFlow and which Keras this is. No other file knows.

`tf.keras` is Keras 2 on TensorFlow 2.15, Keras 3 on later releases, and
tf_keras there when `TF_USE_LEGACY_KERAS=1`. What they hold in common is used
where it is needed; what differs is hidden behind the functions below.
"""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

KERAS_3: bool = getattr(tf.keras, "__version__", "2").startswith("3.")

register = tf.keras.utils.register_keras_serializable(package="swa_tf")
"""Class decorator: a saved model finds the class without `custom_objects`."""


def tensorflow_addons() -> types.ModuleType | None:
    """TensorFlow Addons, or None: it works with TensorFlow 2.15 alone."""
    if not tf.__version__.startswith("2.15."):
        return None
    if importlib.util.find_spec("tensorflow_addons") is None:
        return None
    return importlib.import_module("tensorflow_addons")


def batch_norm_layers() -> tuple[type, ...]:
    """The batch-norm classes of this Keras, every one that users meet."""
    candidates = [tf.keras.layers.BatchNormalization]
    if not KERAS_3:
        candidates += [
            tf.compat.v1.keras.layers.BatchNormalization,
            tf.keras.layers.experimental.SyncBatchNormalization,
        ]
    return tuple(candidates)


def add_statistic(layer: Any, name: str, **kwargs: Any) -> Any:
    """A non-trainable weight of `layer` that mixed precision never casts."""
    autocast = "autocast" if KERAS_3 else "experimental_autocast"
    return layer.add_weight(
        name=name, trainable=False, **{autocast: False}, **kwargs
    )


def tf_variable(variable: Any) -> Any:
    """The `tf.Variable` under a Keras 3 variable; anything else as it is."""
    if KERAS_3 and isinstance(variable, tf.keras.Variable):
        return variable.value
    return variable


def variable_name(variable: Any) -> str:
    """The name of a variable or tensor, unique within its model."""
    if KERAS_3 and isinstance(variable, tf.keras.Variable):
        return str(variable.path)
    return str(variable.name.rsplit(":", 1)[0])


def components(variable: Any) -> Sequence[tf.Variable]:
    """The variables, one a device, of which a `tf.Variable` is made."""
    values: Sequence[tf.Variable] = getattr(variable, "values", (variable,))
    return values


def strategy_of(variable: Any) -> tf.distribute.Strategy | None:
    """The strategy that made this `tf.Variable`; None for a plain one."""
    return getattr(variable, "distribute_strategy", None)


class Untracked:
    """Hides a container of variables from a `tf.Module`.

    A module writes the variables of its lists and dictionaries into its
    checkpoints, also those that belong to somebody else.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def initial_value(variable: tf.Variable) -> tf.Tensor:
    """The value a variable has now; in a v1 graph, or will be given first."""
    if tf.executing_eagerly():
        return variable.read_value()
    return tf.cond(
        tf.compat.v1.is_variable_initialized(variable),
        variable.read_value,
        lambda: variable.initial_value,
    )


def snapshot(variables: Iterable[Any]) -> Callable[[], None]:
    """Holds the values that variables have now; eager mode only.

    A held value shares the variable's buffer, so holding copies nothing.

    Returns:
        A function that puts the values back bit for bit, in every component.
    """
    held = [
        (component, component.read_value())
        for variable in variables
        for component in components(tf_variable(variable))
    ]

    def restore() -> None:
        for component, value in held:
            component.assign(value)

    return restore
