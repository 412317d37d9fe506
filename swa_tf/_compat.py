"""Which TensorFlow and which Keras this is. No other file knows.

`tf.keras` is Keras 2 on TensorFlow 2.15, Keras 3 on later releases, and
tf_keras there when `TF_USE_LEGACY_KERAS=1`. What they hold in common is used
where it is needed; what differs is hidden behind the functions below.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

KERAS_3: bool = getattr(tf.keras, "__version__", "2").startswith("3.")

BRANCHES_TAKE_VIEWS: bool = not tf.__version__.startswith("2.15.")
"""Whether XLA, on processors, reshapes for a branch without a copy."""

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


def variable_classes() -> tuple[type, ...]:
    """The classes of variables, plain and of this Keras."""
    return (tf.Variable, tf.keras.Variable) if KERAS_3 else (tf.Variable,)


def variable_name(variable: Any) -> str:
    """The name of a variable or tensor, unique within its model."""
    if KERAS_3 and isinstance(variable, tf.keras.Variable):
        return str(variable.path)
    return str(variable.name.rsplit(":", 1)[0])


def copy_slices_and_sharding(source: Any, target: Any, suffix: str) -> None:
    """Makes a v1 graph's variable a part of a whole as `source` is of its own.

    A part of a partitioned variable is saved under the name of the whole, and
    XLA is told on which devices the parts of a variable are. TensorFlow's own
    shadow variables have both from their variable; no public name gives them.
    """
    part = source._save_slice_info
    if part is not None:
        target._set_save_slice_info(
            tf.Variable.SaveSliceInfo(
                f"{part.full_name}/{suffix}",
                part.full_shape,
                part.var_offset,
                part.var_shape,
            )
        )
    attribute = "_XlaSharding"
    op = source.op  # of no graph where the variable is mirrored
    if isinstance(op, tf.Operation) and attribute in op.node_def.attr:
        target.op._set_attr(attribute, op.node_def.attr[attribute])


def optimizer_variables(optimizer: Any) -> list[Any]:
    """All that an optimizer keeps; nothing of None."""
    variables = getattr(optimizer, "variables", [])
    return list(variables() if callable(variables) else variables)


def save_with_model(
    model: Any,
    name: str,
    save: Callable[[], bytes],
    load: Callable[[bytes], None],
) -> Callable[[], None]:
    """Lets all that saves and loads the model's weights save bytes as well.

    `BackupAndRestore` is meant. The bytes belong to an attribute `name` of the
    model; they are no weight, and change no list of any.

    Returns:
        A function that ends it.
    """
    saved: Any
    if KERAS_3:
        saved = _Operation(save, load)
    else:
        # In between, for Keras 2 forgets no attribute that it tracks.
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
        """Keras 3 saves what is `KerasSaveable`: this class, of the public."""

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
        """Keras 2 saves what TensorFlow tracks."""

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


def is_functional(model: Any) -> bool:
    """Whether it is Keras, and no attribute of a user's, that holds layers."""
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
"""Where a layer of this Keras lists what attributes of it hold too."""


def uncounted_attributes(part: Any) -> frozenset[str]:
    """Attributes of a layer or module that hold none of its weights.

    Such as the number of batches that a model was trained on.
    """
    name = "_TF_MODULE_IGNORED_PROPERTIES"  # what `tf.Module.variables` skips
    ignored: frozenset[str] = getattr(part, name, getattr(tf.Module, name))
    return ignored


def optimizers() -> tuple[type, ...]:
    """The classes that optimizers of this Keras are of, Addons' included."""
    if KERAS_3:
        return (tf.keras.optimizers.Optimizer,)
    return (
        tf.keras.optimizers.Optimizer,
        tf.keras.optimizers.legacy.Optimizer,
    )


def optimizer_parts(part: Any) -> list[tuple[str, Any]]:
    """By name what an optimizer, or a part of it, holds; no model's weight."""
    if KERAS_3:
        # TensorFlow does not see what Keras 3 appends to lists.
        children = vars(part) if isinstance(part, optimizers()) else {}
    elif isinstance(part, tf.__internal__.tracking.Trackable):
        children = tf.train.TrackableView.children(part)
    else:
        children = {}
    # The first holds what others do; the second is the model's, of Keras 3.
    skipped = {"_variables", "_trainable_variables"}
    skipped |= uncounted_attributes(part)
    return [
        ("iterations" if name == "iter" else name, child)
        for name, child in children.items()
        if name not in skipped
    ]


def optimizer_slots(optimizer: Any) -> dict[str, list[Any]]:
    """The variables that an optimizer lists, by the end of their names.

    A legacy optimizer's slots are found here alone: "<weight>/momentum:0".
    """
    variables = optimizer.variables
    slots: dict[str, list[Any]] = {}
    for variable in variables() if callable(variables) else variables:
        slot = variable_name(variable).rsplit("/", 1)[-1]
        slots.setdefault(slot, []).append(variable)
    return slots
