"""What a callback replaces in a model and its average while `fit` runs."""

from __future__ import annotations

import contextlib
from typing import Any

NOT_STARTED = -(2**62)
"""The number of calls of `apply` while averaging must not start yet."""


class ModelPatches(contextlib.ExitStack):
    """Attributes of objects, replaced until `close` puts the originals back.

    Keras does not tell a callback that `fit` raised, so the replacements can
    outlive the `fit` they were made for. Therefore each replacement must work
    as the original does outside of that `fit`, and the model's next `fit`
    first puts the originals back.
    """

    def begin(self, model: Any) -> None:
        """Lets the next `fit` of `model` close this; one may be open."""
        fit = vars(model).get("fit")
        if isinstance(getattr(fit, "__self__", None), ModelPatches):
            raise ValueError("`fit` takes one `SWACallback`. Received: two")
        self._model = model
        self.replace(model, "fit", self._close_and_fit)

    def replace(self, target: Any, name: str, replacement: Any) -> None:
        """Replaces an attribute of `target`."""
        self.callback(_put_back, target, name, vars(target).get(name))
        vars(target)[name] = replacement

    def replace_schedule(self, average: Any, when: Any) -> None:
        """Lets `average` count its calls for `when`; None leaves its own."""
        self.callback(setattr, average, "when", average.when)
        average.when = when or average.when
        if average.when is not None:
            n_calls, is_own = int(average.n_calls), when is None
            self.callback(_put_back_n_calls, average, n_calls, is_own)

    def replace_train_step(self, replacement: Any) -> None:
        """Makes `fit` compile another train step; `train_on_batch` does not."""
        model, train_on_batch = self._model, self._model.train_on_batch
        original = vars(model).get("train_step")
        compiled = None

        def original_train_on_batch(*args: Any, **kwargs: Any) -> Any:
            nonlocal compiled
            replaced = model.train_function
            _put_back(model, "train_step", original)
            model.train_function = compiled
            try:
                return train_on_batch(*args, **kwargs)
            finally:
                compiled = model.train_function
                vars(model)["train_step"] = replacement
                model.train_function = replaced

        self.callback(model.make_train_function, force=True)
        self.replace(model, "train_step", replacement)
        self.replace(model, "train_on_batch", original_train_on_batch)
        model.make_train_function(force=True)

    def _close_and_fit(self, *args: Any, **kwargs: Any) -> Any:
        self.close()
        return self._model.fit(*args, **kwargs)


def _put_back(target: Any, name: str, original: Any) -> None:
    """Restores an object's own attribute; None means that it had none."""
    if original is None:
        vars(target).pop(name, None)
    else:
        vars(target)[name] = original


def _put_back_n_calls(average: Any, n_calls: int, is_own: bool) -> None:
    """Restores the number of calls; one of the average's own goes on."""
    if not is_own or int(average.n_calls) == NOT_STARTED:
        average.n_calls = n_calls
