"""Attributes of a model that a callback replaces while the model is fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Overrides:
    """Attributes of objects, replaced until `undo` puts the originals back.

    Keras does not tell a callback that `fit` raised, so the replacements can
    outlive the `fit` they were made for. Therefore each replacement must work
    as the original does outside of that `fit`, and the model's next `fit`
    first puts the originals back.

    Args:
        model: The model that is fit.
        at_undo: A function to call when the originals are put back.
    """

    def __init__(self, model: Any, at_undo: Callable[[], None]) -> None:
        self._model = model
        self._at_undo = at_undo
        self._originals: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self.replace(model, "fit", self._undo_and_fit)

    def replace(self, target: Any, name: str, replacement: Any) -> None:
        """Replaces an attribute of `target`."""
        original = vars(target).get(name)
        self._originals.setdefault((id(target), name), (target, name, original))
        vars(target)[name] = replacement

    def replace_train_step(self, replacement: Any) -> None:
        """Makes `fit` compile another train step; `train_on_batch` does not."""
        model, train_on_batch = self._model, self._model.train_on_batch
        original = vars(model).get("train_step")
        compiled = {"original": None}

        def original_train_on_batch(*args: Any, **kwargs: Any) -> Any:
            replaced = vars(model)["train_step"], model.train_function
            _put_back(model, "train_step", original)
            model.train_function = compiled["original"]
            try:
                return train_on_batch(*args, **kwargs)
            finally:
                compiled["original"] = model.train_function
                vars(model)["train_step"], model.train_function = replaced

        self.replace(model, "train_step", replacement)
        self.replace(model, "train_on_batch", original_train_on_batch)
        model.make_train_function(force=True)

    def undo(self) -> None:
        """Puts the originals back."""
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
    """Restores an object's own attribute; None means that it had none."""
    if original is None:
        vars(target).pop(name, None)
    else:
        vars(target)[name] = original


def last_callback(callback: Any, history: Any) -> Any:
    """Returns the callback that Keras calls last: its own `History`.

    What must run after the callbacks of the user replaces methods of this one.
    If `history` does not belong to the `fit` of `callback`, because the user
    made the `CallbackList`, this is `callback` itself.
    """
    params = getattr(callback, "params", None)
    if params is not None and getattr(history, "params", None) is params:
        return history
    return callback
