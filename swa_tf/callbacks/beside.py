"""The callbacks that `fit` calls beside a `SWACallback`."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import tensorflow as tf


def running_list() -> Any:
    """Returns the `CallbackList` of the innermost `fit`; None if it has none.

    Keras tells no callback of the others, so it is looked up in the calls.
    """
    for call in inspect.stack(context=0):
        caller = call.frame.f_locals.get("self")
        if isinstance(caller, tf.keras.callbacks.CallbackList):
            return caller
    return None


def warn_of_trained_weights(callbacks: list[Any], evaluate: str) -> None:
    """Warns of callbacks that keep weights by a metric of the averages."""
    averaged = {"averaged": ("swa_val_", "val_"), "both": ("swa_val_",)}
    for each in callbacks:
        monitor = getattr(each, "monitor", None)
        for flag in ("save_best_only", "restore_best_weights"):
            of_averages = str(monitor).startswith(averaged.get(evaluate, ()))
            if of_averages and getattr(each, flag, False):
                warnings.warn(
                    f"{type(each).__name__}({monitor=}, {flag}=True) keeps the "
                    "trained weights, and this metric is of the averaged ones. "
                    "Save the best averaged model inside `averaged_weights`: "
                    "see docs/keras.md.",
                    stacklevel=2,
                )


def with_columns(callbacks: list[Any]) -> list[Any]:
    """Returns the callbacks with one more before each `CSVLogger`.

    The columns are of the logs of the first epoch. If this has no validation,
    Keras adds those of "val_...", and so are those of "swa_val_..." added.
    """

    def add(logger: Any, epoch: int, logs: dict[str, Any]) -> None:
        if logger.keys is None and not any(n.startswith("val_") for n in logs):
            prefixes = ("", "val_", "swa_val_")
            logger.keys = [p + name for p in prefixes for name in sorted(logs)]

    found = []
    for each in callbacks:
        if isinstance(each, tf.keras.callbacks.CSVLogger):
            adds = functools.partial(add, each)
            found.append(tf.keras.callbacks.LambdaCallback(on_epoch_end=adds))
        found.append(each)
    return found
