"""The callbacks that `fit` calls beside a `SWACallback`."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import tensorflow as tf

_OF_AVERAGES = {"averaged": ("swa_val_", "val_"), "both": ("swa_val_",)}
"""How names of metrics of the averaged model begin, by `evaluate`."""


class WritesAverages:
    """The base of `AveragedModelCheckpoint`, by which it is recognized."""

    swa_callback: Any
    best: Any  # the best value of its figure so far, or None


def running_list() -> Any:
    """Returns the `CallbackList` of the innermost `fit`, or None.

    Keras tells no callback of the others, so it is looked up in the calls.
    """
    frame = inspect.currentframe()  # `inspect.stack` would load every module
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, tf.keras.callbacks.CallbackList):
            return caller
        frame = frame.f_back
    return None


def prepared(callbacks: list[Any], evaluate: str) -> list[Any]:
    """Returns the callbacks, with one added before each `CSVLogger`.

    Warns of those that keep trained weights by a metric of the averages.
    Backups come after the checkpoints of averages, whose best value they hold.
    """
    found = []
    for each in callbacks:
        monitor = getattr(each, "monitor", None)
        flags = ("save_best_only", "restore_best_weights")
        keeps = [flag for flag in flags if getattr(each, flag, False)]
        of_averages = str(monitor).startswith(_OF_AVERAGES.get(evaluate, ()))
        if keeps and of_averages and not isinstance(each, WritesAverages):
            warnings.warn(
                f"{type(each).__name__}({monitor=}, {keeps[0]}=True) keeps the "
                "trained weights, and this metric is of the averaged ones. "
                "`AveragedModelCheckpoint` keeps these in files, and "
                "`SWACallback(restore_best_averages=True)` in the model.",
                stacklevel=2,
            )
        is_table = isinstance(each, tf.keras.callbacks.CSVLogger)
        if is_table and evaluate != "trained":
            add = functools.partial(_add_columns, each)
            found.append(tf.keras.callbacks.LambdaCallback(on_epoch_end=add))
        found.append(each)
    if any(isinstance(each, WritesAverages) for each in found):
        backup = tf.keras.callbacks.BackupAndRestore
        found.sort(key=lambda each: isinstance(each, backup))
    return found


def checkpoints_of(running: Any, swa_callback: Any) -> list[WritesAverages]:
    """Returns each `AveragedModelCheckpoint` of a `SWACallback`."""
    callbacks = [] if running is None else running.callbacks
    found = [each for each in callbacks if isinstance(each, WritesAverages)]
    return [each for each in found if each.swa_callback is swa_callback]


def _add_columns(logger: Any, epoch: int, logs: dict[str, Any]) -> None:
    """Adds sorted columns, as of epochs with validation, if there is none."""
    if logger.keys is None and not any(n.startswith("val_") for n in logs):
        prefixes = ("", "val_", "swa_val_")
        logger.keys = sorted(p + name for p in prefixes for name in logs)
