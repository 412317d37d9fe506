"""Saves an average together with the model that is fit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from swa_tf.averaging import WeightAverage
from swa_tf.support import stack
from swa_tf.support import variables as variables_lib


class SavedAverage:
    """The average of a `fit`, saved and restored wherever the model is.

    This serves `BackupAndRestore`. Keras may restore the model before the
    average exists: the bytes are then kept until `attach`. Weights that are
    loaded while the model trains bring no average.

    Args:
        model: The model that is fit.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._average: WeightAverage | None = None
        self._restored = b""
        # TensorFlow keeps what it read from an earlier checkpoint and found no
        # object for, and hands it over at once. It is of another training.
        self.restorable = False
        self.detach = stack.save_with_model(
            model, "swa_tf_average", self._save, self._load
        )
        self.restorable = True

    @property
    def is_attached(self) -> bool:
        """Whether there is an average to save."""
        return self._average is not None

    def attach(self, average: WeightAverage) -> None:
        """Saves `average` from now on; loads what was restored before."""
        self._average = average
        if self._restored:
            self._load(self._restored)

    def _save(self) -> bytes:
        if self._average is None or self._average.swapped:
            return b""  # there is no training, or the model is averaged
        buffer = io.BytesIO()
        np.savez(buffer, *[v.read_value() for v in self._average.variables])
        return buffer.getvalue()

    def _load(self, saved: bytes) -> None:
        if not self.restorable:
            return
        self._restored = saved
        if self._average is None or not saved:
            return
        with np.load(io.BytesIO(saved)) as arrays:
            values = list(arrays.values())
        if not self._model.built:
            raise ValueError(
                "The model must be built before `fit` for its average to be "
                "restored: call it once on a batch."
            )
        if len(values) > len(self._average.variables):  # in manual mode
            self._average.build(self._model.trainable_variables)
        variables = self._average.variables
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
