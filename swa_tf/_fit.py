"""What a callback changes of a model while it is fit, and puts back."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf import _compat, _variables
from swa_tf.averaging import WeightAverage


class Overrides:
    """Attributes of objects, replaced until they are put back.

    Keras tells a callback nothing of an exception, so it cannot put them back
    then. Each replacement must work as the original does outside the
    callback's `fit`, and the model's next `fit` puts them back first.
    """

    def __init__(self, model: Any, at_undo: Callable[[], None]) -> None:
        self._model = model
        self._at_undo = at_undo
        self._originals: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self.replace(model, "fit", self._undo_and_fit)

    def replace(self, target: Any, name: str, replacement: Any) -> None:
        """Replaces an attribute of `target`; `undo` puts it back."""
        original = vars(target).get(name)
        self._originals.setdefault((id(target), name), (target, name, original))
        vars(target)[name] = replacement

    def replace_train_step(self, replacement: Any) -> None:
        """Compiles `fit` with another train step, and nothing else."""
        model, train_on_batch = self._model, self._model.train_on_batch
        original = vars(model).get("train_step")
        functions = {"plain": None}

        def plain_train_on_batch(*args: Any, **kwargs: Any) -> Any:
            ours = vars(model)["train_step"], model.train_function
            _put_back(model, "train_step", original)
            model.train_function = functions["plain"]
            try:
                return train_on_batch(*args, **kwargs)
            finally:
                functions["plain"] = model.train_function
                vars(model)["train_step"], model.train_function = ours

        self.replace(model, "train_step", replacement)
        self.replace(model, "train_on_batch", plain_train_on_batch)
        model.make_train_function(force=True)

    def undo(self) -> None:
        compiled = (id(self._model), "train_step") in self._originals
        for target, name, original in self._originals.values():
            _put_back(target, name, original)
        self._originals.clear()
        self._at_undo()
        if compiled:
            self._model.make_train_function(force=True)

    def _undo_and_fit(self, *args: Any, **kwargs: Any) -> Any:
        self.undo()
        return self._model.fit(*args, **kwargs)


def _put_back(target: Any, name: str, original: Any) -> None:
    """Gives an object its own attribute again; None if it had none."""
    if original is None:
        vars(target).pop(name, None)
    else:
        vars(target)[name] = original


class Saved:
    """An average that whatever saves the model in training saves as well.

    So `BackupAndRestore` restores it. Keras restores at the beginning of the
    training, maybe before there is an average: then it is kept until `attach`.
    Weights that are loaded later, in training, bring no average.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._average: WeightAverage | None = None
        self._restored = b""
        # What comes at once is of a checkpoint that was loaded before:
        # TensorFlow keeps what it found no place for.
        self.restorable = False
        self.detach = _compat.save_with_model(
            model, "swa_tf_average", self._save, self._load
        )
        self.restorable = True

    def attach(self, average: WeightAverage) -> None:
        self._average = average
        if self._restored:
            self._load(self._restored)

    def _save(self) -> bytes:
        if self._average is None or self._average.swapped:
            return b""  # no training, or the averaged model is saved
        values = [v.read_value().numpy() for v in self._average.variables]
        buffer = io.BytesIO()
        np.savez(buffer, *values)
        return buffer.getvalue()

    def _load(self, saved: bytes) -> None:
        if not self.restorable:
            return
        self._restored = saved
        if self._average is None or not saved:
            return
        with np.load(io.BytesIO(saved)) as arrays:
            values = [arrays[f"arr_{i}"] for i in range(len(arrays))]
        if not self._model.built:
            raise ValueError(
                "The model must be built before `fit` for its average to be "
                "restored: call it once on a batch."
            )
        if len(values) > len(self._average.variables):  # in manual mode
            self._average.build(self._model.trainable_variables)
        variables = self._average.variables
        # The value's: a variable may be of another shape at another time.
        shapes = [tuple(v.read_value().shape) for v in variables]
        if shapes != [value.shape for value in values]:
            raise ValueError(
                "The average restored is of other variables than those of "
                f"the model: shapes {[value.shape for value in values]} "
                f"instead of {shapes}"
            )
        for variable, value in zip(variables, values):
            for component in _variables.components(variable):
                component.assign(value)


def last_callback(callback: Any, history: Any) -> Any:
    """The callback that Keras calls after those of the user: its `History`.

    What must come after them is hung on to it. Where it is not of this `fit`,
    as in a `CallbackList` that the user made, it is `callback` itself.
    """
    params = getattr(callback, "params", None)
    if params is not None and getattr(history, "params", None) is params:
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
