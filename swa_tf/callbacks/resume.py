"""Saves an average together with the model that is fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from swa_tf.averaging import WeightAverage
from swa_tf.support import compat
from swa_tf.support import variables as variables_lib


class SavedAverage:
    """The average of a `fit`, saved and restored wherever the model is.

    This serves `BackupAndRestore`. Keras may restore the model before the
    average exists: the bytes are then kept until `attach`. Weights that are
    loaded while the model trains (not `restorable`) bring no average.
    """

    def __init__(self, model: Any, variables: Callable[[], list[Any]]) -> None:
        self._model, self._variables = model, variables
        self.average: WeightAverage | None = None
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
        buffer = io.BytesIO()
        np.savez(buffer, *[v.read_value() for v in self.average.variables])
        return buffer.getvalue()

    def _load(self, saved: bytes) -> None:
        if not self.restorable:
            return
        self._restored = saved
        if self.average is None or not saved:
            return
        with np.load(io.BytesIO(saved)) as arrays:
            values = list(arrays.values())
        if not self._model.built:
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
        for variable, value in zip(variables, values):
            for component in variables_lib.components(variable):
                component.assign(value)
