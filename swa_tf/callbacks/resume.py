"""Saves an average together with the model that is fit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.averaging import WeightAverage
from swa_tf.callbacks.fit_averages import BestAverages
from swa_tf.support import compat, model_parts
from swa_tf.support import variables as variables_lib

_AVERAGE = "arr_"  # NumPy's name, and a number, of what has no other
_CHECKPOINTS = "checkpoints"


class SavedAverage:
    """The average of a `fit`, saved and restored wherever the model is.

    It also saves the best averages so far, and the best value that each
    `AveragedModelCheckpoint` has seen.

    This serves `BackupAndRestore`. Keras may restore the model before the
    average exists: the bytes are then kept until `attach`. Weights that are
    loaded while the model trains (not `restorable`) bring no average.
    """

    def __init__(self, model: Any, variables: Callable[[], list[Any]]) -> None:
        self._model, self._variables = model, variables
        self.average: WeightAverage | None = None
        self.best: BestAverages | None = None
        self.checkpoints: list[Any] = []  # that write averages
        self.restorable = True
        self.detach = compat.save_with_model(
            model, "swa_tf_average", self._save, self._load
        )
        # TensorFlow keeps what it read from an earlier checkpoint and found no
        # object for, and has loaded it by now. It is of another training.
        self._restored = b""

    def attach(self, average: WeightAverage) -> None:
        """Saves `average` from now on; loads what was restored before."""
        self.average = average
        if self._restored:
            self._load(self._restored)

    def _save(self) -> bytes:
        if self.average is None or self.average.swapped:
            return b""  # there is no training, or the model is averaged
        is_automatic = self.average.when is not None
        if is_automatic and model_parts.is_built(self._model):
            # If `fit` has built the model, so that the resumed one's fits.
            self.average.build(self._variables())
        buffer = io.BytesIO()
        kept = self.best.arrays() if self.best else {}
        best = [each.best for each in self.checkpoints]
        numbers = [None if each is None else float(each) for each in best]
        kept[_CHECKPOINTS] = np.array(json.dumps(numbers))
        averages = [v.read_value() for v in self.average.variables]
        np.savez(buffer, *averages, **kept)
        return buffer.getvalue()

    def _load(self, saved: bytes) -> None:
        if not self.restorable:
            return
        self._restored = saved
        if self.average is None or not saved:
            return
        with np.load(io.BytesIO(saved)) as arrays:
            kept = dict(arrays)
        values = [v for name, v in kept.items() if name.startswith(_AVERAGE)]
        if not model_parts.is_built(self._model):
            raise ValueError(
                "The model must be built before `fit` for its average to be "
                "restored: call it once on a batch."
            )
        if len(values) > len(self.average.variables):  # in manual mode
            self.average.build(self._variables())
        variables = self.average.variables
        # A variable of unknown shape has the shape of its value.
        wanted = [tuple(v.read_value().shape) for v in variables]
        shapes = [value.shape for value in values]
        if shapes != wanted:
            raise ValueError(
                "The average restored is of other variables than those of "
                f"the model: shapes {shapes} instead of {wanted}"
            )
        variables_lib.assign(zip(variables, map(tf.constant, values)))
        if self.best is not None:
            self.best.load(kept)
        numbers = json.loads(str(kept.get(_CHECKPOINTS, "[]")))
        for checkpoint, best in zip(self.checkpoints, numbers):
            checkpoint.best = best
