"""Hides which TensorFlow and which Keras this is. No other file knows.

`tf.keras` is Keras 2 on TensorFlow 2.15, and later Keras 3, or tf_keras with
`TF_USE_LEGACY_KERAS=1`.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

KERAS_3: bool = getattr(tf.keras, "__version__", "2").startswith("3.")

VARIABLE_CLASSES: tuple[type, ...] = (
    (tf.Variable, tf.keras.Variable) if KERAS_3 else (tf.Variable,)
)

register = tf.keras.utils.register_keras_serializable(package="swa_tf")
"""Class decorator: a saved model finds the class without `custom_objects`."""


def tensorflow_addons() -> types.ModuleType | None:
    """Returns TensorFlow Addons if it is installed beside TensorFlow 2.15."""
    of_its_time = tf.__version__.startswith("2.15.")
    if of_its_time and importlib.util.find_spec("tensorflow_addons"):
        return importlib.import_module("tensorflow_addons")
    return None


def check_keras(argument: str, value: Any) -> None:
    """Raises if a model is of a Keras that `tf.keras` is not."""
    classes = (tf.keras.Model, *type(value).__mro__)
    own, *found = (each.__module__.split(".")[0] for each in classes)
    for other in {"keras", "tf_keras"}.intersection(found) - {own}:
        raise TypeError(
            f"`{argument}` must be of `tf.keras`, which is {own} here (tf_keras"
            " if TF_USE_LEGACY_KERAS=1 is set before TensorFlow is imported, "
            f"else keras). Received: a {type(value).__name__} of {other}"
        )


def batch_norm_layers() -> tuple[type, ...]:
    """Returns the batch-norm classes of this Keras."""
    layers = tf.keras.layers
    if KERAS_3:
        return (layers.BatchNormalization,)
    version_1 = tf.compat.v1.keras.layers.BatchNormalization
    synchronized = layers.experimental.SyncBatchNormalization
    return (layers.BatchNormalization, version_1, synchronized)


def add_statistic(layer: Any, name: str, **kwargs: Any) -> Any:
    """Adds a non-trainable weight that mixed precision does not cast."""
    autocast = "autocast" if KERAS_3 else "experimental_autocast"
    return layer.add_weight(
        name=name, trainable=False, **{autocast: False}, **kwargs
    )


def list_weights_once(layer: Any) -> None:
    """Corrects the lists of a layer whose variables are made not trainable.

    Keras 2 lists such a variable a second time, and then cannot save it.
    """
    if not KERAS_3:
        known = [id(variable) for variable in layer._trainable_weights]
        others = layer._non_trainable_weights
        others[:] = [each for each in others if id(each) not in known]


def tf_variable(variable: Any) -> Any:
    """Returns the `tf.Variable` of a Keras 3 variable; all else unchanged."""
    if KERAS_3 and isinstance(variable, tf.keras.Variable):
        return variable.value
    return variable


def variable_name(variable: Any) -> str:
    """Returns the name of a variable or tensor, unique within its model."""
    if KERAS_3 and isinstance(variable, tf.keras.Variable):
        return str(variable.path)
    return str(variable.name.rsplit(":", 1)[0])


def copy_slices_and_sharding(source: Any, target: Any, suffix: str) -> None:
    """Copies a v1 variable's slices and sharding, as TensorFlow's average."""
    part = source._save_slice_info
    if part is not None:
        name = f"{part.full_name}/{suffix}"
        place = part.full_shape, part.var_offset, part.var_shape
        info = tf.Variable.SaveSliceInfo(name, *place)
        target._set_save_slice_info(info)
    attribute = "_XlaSharding"
    op = source.op  # no `tf.Operation` if the variable is mirrored
    if isinstance(op, tf.Operation) and attribute in op.node_def.attr:
        target.op._set_attr(attribute, op.node_def.attr[attribute])


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Returns all variables of an optimizer; an empty list for None."""
    variables = getattr(optimizer, "variables", [])
    return list(variables() if callable(variables) else variables)


def save_with_model(
    model: Any,
    name: str,
    save: Callable[[], bytes],
    load: Callable[[bytes], None],
) -> Callable[[], None]:
    """Saves bytes with a model from now on; returns a function that ends it."""
    saved: Any
    if KERAS_3:
        saved = _Operation(save, load)
    else:
        # Keras 2 does not forget an attribute that was tracked, but the
        # `Checkpoint` in it forgets its own.
        saved = tf.train.Checkpoint(state=_State(save, load))
    setattr(model, name, saved)

    def end() -> None:
        attached: Any = getattr(model, name, None)
        if attached is saved:
            if not KERAS_3:
                del attached.state
            delattr(model, name)

    return end


if KERAS_3:

    class _Operation(tf.keras.Operation):
        """An object that Keras 3 saves: its only public class to do so."""

        def __init__(
            self, save: Callable[[], bytes], load: Callable[[bytes], None]
        ) -> None:
            super().__init__()
            self._save, self._load = save, load

        def save_own_variables(self, store: Any) -> None:
            store["bytes"] = np.frombuffer(self._save(), np.uint8)

        def load_own_variables(self, store: Any) -> None:
            if "bytes" in store.keys():  # noqa: SIM118, not a dictionary
                self._load(np.asarray(store["bytes"]).tobytes())

else:

    class _State(tf.train.experimental.PythonState):
        """An object that TensorFlow tracks, and so Keras 2 saves."""

        def __init__(
            self, save: Callable[[], bytes], load: Callable[[bytes], None]
        ) -> None:
            self._save, self._load = save, load

        def serialize(self) -> bytes:
            # A SavedModel is written inside a graph; a new thread is eager.
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                return thread.submit(self._save).result()

        def deserialize(self, string_value: bytes) -> None:
            self._load(string_value)


def monitor_op(model: Any, monitor: str, mode: str) -> Callable[..., Any]:
    """Returns what Keras calls an improvement of a figure in the logs.

    A figure of averages is judged as that of the trained weights is. With
    `mode="auto"` Keras 2 goes by the name, and Keras 3 by the metric, which is
    there after the first epoch; it raises if there is none.
    """
    metric = re.sub("^swa_val_", "val_", monitor)
    callback = tf.keras.callbacks.ModelCheckpoint(
        "never.keras", metric, mode=mode, save_freq=sys.maxsize
    )
    callback.set_model(model)
    callback.on_epoch_end(0, {})
    return callback.monitor_op


def is_functional(model: Any) -> bool:
    """Whether Keras holds the layers, and no attribute of a subclass."""
    if isinstance(model, tf.keras.Sequential):
        return True
    if not KERAS_3:
        return bool(getattr(model, "_is_graph_network", False))
    outputs = tf.nest.flatten(getattr(model, "outputs", None))
    return isinstance(model, tf.keras.Model) and all(
        isinstance(output, tf.keras.KerasTensor) for output in outputs or [None]
    )


KERAS_CONTAINERS = frozenset(
    {"_trainable_variables", "_non_trainable_variables", "_layers"}
    if KERAS_3
    else {
        "_trainable_weights",
        "_non_trainable_weights",
        "_self_tracked_trackables",
    }
)
"""Attributes in which Keras lists what other attributes hold too."""


def uncounted_attributes(part: Any) -> frozenset[str]:
    """Returns the attributes of a layer or module that hold no weights.

    One is the number of batches that a model was trained on. Keras 2 gives a
    layer that was adapted some of a model's.
    """
    name = "_TF_MODULE_IGNORED_PROPERTIES"  # `tf.Module.variables` skips them
    kind = tf.keras.Model if isinstance(part, tf.keras.layers.Layer) else part
    return getattr(kind, name, getattr(tf.Module, name))


def optimizers() -> tuple[type, ...]:
    """Returns the base classes of optimizers, also of those of Addons."""
    base = tf.keras.optimizers
    return (base.Optimizer, *(() if KERAS_3 else (base.legacy.Optimizer,)))


def optimizer_parts(part: Any) -> list[tuple[str, Any]]:
    """Returns what an optimizer or a part of it holds, without weights."""
    if KERAS_3:
        # TensorFlow does not see what Keras 3 appends to lists.
        children = vars(part) if isinstance(part, optimizers()) else {}
    elif isinstance(part, tf.__internal__.tracking.Trackable):
        children = tf.train.TrackableView.children(part)
    else:
        children = {}
    # `_variables` repeats others; Keras 3 keeps the model's weights in
    # `_trainable_variables`.
    skipped = {"_variables", "_trainable_variables"}
    skipped |= uncounted_attributes(part)
    return [
        ("iterations" if name == "iter" else name, child)
        for name, child in children.items()
        if name not in skipped
    ]


def optimizer_slots(optimizer: Any) -> dict[str, list[Any]]:
    """Returns the variables of an optimizer by the ends of their names."""
    slots: dict[str, list[Any]] = {}
    for variable in optimizer_variables(optimizer):
        slot = variable_name(variable).rsplit("/", 1)[-1]
        slots.setdefault(slot, []).append(variable)
    return slots
