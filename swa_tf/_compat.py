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
