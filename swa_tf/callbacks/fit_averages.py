"""The averages of a `fit`: in its model, refitted, and those that did best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf.averaging import WeightAverage
from swa_tf.support import checks, compat, model_parts
from swa_tf.support import variables as variables_lib
from swa_tf.swapping import averaged_weights

Values = list[tuple[Any, tf.Tensor]]
"""Variables, mirrored ones whole, each with one value for every device."""


class FitAverages:
    """The averages of the weights of one model, to be swapped in.

    The model is refitted once for each validation: the files and the end of
    `fit` take the batch-norm statistics found, until `forget_statistics`.
    """

    def __init__(
        self, model: Any, averages: WeightAverage, refit: dict[str, Any]
    ) -> None:
        self._model, self._averages, self._refit = model, averages, refit
        self.forget_statistics()

    def forget_statistics(self) -> None:
        """Makes the next swap refit, as training moves weights."""
        self._statistics: Values = []
        self._refitted_at = -1  # models averaged

    def weights(self) -> list[Any]:
        """Returns the weights of the model that have an average."""
        weights = model_parts.weights(self._model)
        return [w for w in weights if self._averages.average(w) is not None]

    def are_there(self) -> bool:
        """Whether every weight that would be swapped has its average."""
        try:
            self._averages.assert_averaged(self.weights() or None)
        except RuntimeError:
            return False
        return True

    def are_finite(self) -> bool:
        averages = [self._averages.average(w) for w in self.weights()]
        return bool(variables_lib.all_finite(averages))

    @contextlib.contextmanager
    def swapped_in(
        self, keep: bool = False, values: Values | None = None
    ) -> Iterator[None]:
        """A block in which the model has its averages, or these `values`."""
        n_models = int(self._averages.n_models)
        if values is None and self._refitted_at == n_models:
            values = self._statistics
        statistics = model_parts.statistics(self._model, trainable=True)
        refit = self._refit if statistics and values is None else {}
        with averaged_weights(self._averages, self._model, keep=keep, **refit):
            variables_lib.assign(values or ())
            if refit:
                self._statistics = values_of(statistics)
                self._refitted_at = n_models
            yield


def values_of(variables: list[tf.Variable]) -> Values:
    """Returns variables with their present values, uncopied."""
    firsts = [variables_lib.components(variable)[0] for variable in variables]
    return list(zip(variables, map(variables_lib.read, firsts)))


def lacks_statistics(model: Any, averaged: list[Any]) -> bool:
    """Whether batch-norm layers have statistics that are not averaged."""
    layers = model_parts.batch_norm_layers(model, trainable=True)
    found = model_parts.statistics(model, trainable=True)
    known = {variable.ref() for variable in averaged}
    return bool(layers) and not (found and {v.ref() for v in found} <= known)


class Best(NamedTuple):
    """A validation of averages, and all weights of the model in it."""

    figure: float
    epoch: int
    values: Values


class BestAverages:
    """Keeps the averages that did best in a validation, by one figure.

    As `EarlyStopping` keeps trained weights: a tie does not replace the first.
    A figure that is NaN is never the best.
    """

    def __init__(self, model: Any, monitor: str, mode: str) -> None:
        self._model, self.monitor, self._mode = model, monitor, mode
        self._improves: Any = None
        self.found: Best | None = None

    def check_monitor(self, results: dict[str, Any]) -> None:
        """Raises unless `results` have the figure to compare."""
        if self.monitor not in results:
            wanted = f"one of {', '.join(sorted(results))}"
            raise checks.wrong("monitor", wanted, self.monitor)

    def compare(self, epoch: int, results: dict[str, Any]) -> None:
        """Keeps the weights in the model if their `results` are the best."""
        self.check_monitor(results)
        figure = float(results[self.monitor])
        if self._improves is None:
            self._improves = compat.monitor_op(
                self._model, self.monitor, self._mode
            )
        if math.isnan(figure):
            return
        if self.found is None or self._improves(figure, self.found.figure):
            weights = model_parts.weights(self._model)
            self.found = Best(figure, epoch, values_of(weights))

    def arrays(self) -> dict[str, Any]:
        """Returns what is kept, to be saved."""
        if self.found is None:
            return {}
        figure, epoch, values = self.found
        arrays = {f"best_{i}": v.numpy() for i, (_, v) in enumerate(values)}
        return {"best_figure": figure, "best_epoch": epoch, **arrays}

    def load(self, arrays: dict[str, Any]) -> None:
        """Takes over what `arrays` has returned before."""
        if "best_figure" not in arrays:
            return
        values: Values = []
        for i, variable in enumerate(model_parts.weights(self._model)):
            value, dtype = arrays[f"best_{i}"], variable.dtype
            if value.dtype.kind == "V":  # bfloat16, which NumPy cannot read
                value = value.view(dtype.as_numpy_dtype)
            values.append((variable, tf.constant(value, dtype)))
        figure, epoch = arrays["best_figure"], arrays["best_epoch"]
        self.found = Best(float(figure), int(epoch), values)
