"""What a callback changes of a model while it is fit, and puts back."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf import _compat, _variables
from swa_tf.averaging import WeightAverage


class Overrides:
    """Methods of one model, replaced until they are put back.

    Keras tells a callback nothing of an exception, so it cannot put them back
    then. Each replacement must work as the method does outside the callback's
    `fit`, and the next `fit` puts them back first.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._originals: dict[str, Any] = {}
        for name in ("fit", "train_on_batch"):
            self._replace_by_undoing(name)

    def replace(self, name: str, replacement: Any) -> None:
        """Replaces the method `name`; `undo` puts it back."""
        self._originals.setdefault(name, vars(self._model).get(name))
        vars(self._model)[name] = replacement

    def undo(self) -> None:
        compiled = "train_step" in self._originals
        for name, original in self._originals.items():
            if original is None:
                vars(self._model).pop(name, None)
            else:
                vars(self._model)[name] = original
        self._originals.clear()
        if compiled:
            self._model.make_train_function(force=True)

    def _replace_by_undoing(self, name: str) -> None:
        def undo_and_call(*args: Any, **kwargs: Any) -> Any:
            self.undo()
            return getattr(self._model, name)(*args, **kwargs)

        self.replace(name, undo_and_call)


class Saved:
    """An average that whatever saves the model in training saves as well.

    So `BackupAndRestore` restores it. Keras restores at the beginning of the
    training, maybe before there is an average: then it is kept until `attach`.
    """

    def __init__(self, model: Any, average: WeightAverage | None) -> None:
        self._model = model
        self._average = average
        self._restored = b""
        self.detach = _compat.save_with_model(
            model, "swa_tf_average", self._save, self._load
        )

    def attach(self, average: WeightAverage) -> None:
        self._average = average
        if self._restored:
            self._load(self._restored)

    def _save(self) -> bytes:
        if self._average is None:
            return b""
        values = [v.read_value().numpy() for v in self._average.variables]
        buffer = io.BytesIO()
        np.savez(buffer, *values)
        return buffer.getvalue()

    def _load(self, saved: bytes) -> None:
        self._restored = saved
        if self._average is None or not saved:
            return
        with np.load(io.BytesIO(saved)) as arrays:
            values = [arrays[f"arr_{i}"] for i in range(len(arrays))]
        if len(values) > len(self._average.variables):
            if not self._model.built:
                raise ValueError(
                    "The model must be built before `fit` for its average to "
                    "be restored: call it once on a batch."
                )
            self._average.build(self._model.trainable_variables)
        variables = self._average.variables
        shapes = [tuple(v.shape) for v in variables]
        if shapes != [value.shape for value in values]:
            raise ValueError(
                "The average restored is of other variables than those of "
                f"the model: shapes {[value.shape for value in values]} "
                f"instead of {shapes}"
            )
        for variable, value in zip(variables, values):
            for component in _variables.components(variable):
                component.assign(value)


def last_callback(callback: Any) -> Any:
    """The callback that Keras calls last: its own `History`.

    What must come after all other callbacks is hung on to it. Without one, in
    a `CallbackList` that the user made, it is `callback` itself.
    """
    history = getattr(callback.model, "history", None)
    if getattr(history, "params", None) is callback.params:
        return history
    return callback


def check_rate_can_be_set(optimizer: Any) -> None:
    """Raises unless the learning rate of `optimizer` can be assigned."""
    try:
        rate = float(tf.convert_to_tensor(optimizer.learning_rate))
        optimizer.learning_rate = rate
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "`swa_learning_rate` and `schedule` need an optimizer whose "
            "learning rate can be set. One that was made with a schedule can "
            "be made with `swa_tf.schedules.SWALearningRate(schedule, ...)` "
            f"instead, which does the same. Received: optimizer={optimizer!r}"
        ) from error
