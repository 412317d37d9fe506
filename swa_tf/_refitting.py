"""The refit of batch-norm statistics, from its arguments to what is written."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf import _checks, _compat, _parts, _passes, _variables
from swa_tf._accumulators import Statistics


class Arguments(NamedTuple):
    """What the caller of a refit calls its arguments, for the errors.

    And for the warnings `level`, the `stacklevel` of whoever called that.
    """

    model: str = "model"
    dataset: str = "dataset"
    steps: str = "steps"
    level: int = 3


def refit(
    model: Any,
    dataset: Iterable[Any],
    steps: int | None,
    variance: str,
    moving_free: type,
    called: Arguments,
) -> None:
    """`refit_batch_norm`, with the names of another function's arguments.

    `moving_free` is `MovingFreeBatchNormalization`, whose layers have their
    own place for what is computed.
    """
    _check_arguments(model, dataset, steps, variance, called)
    with _ONE_AT_A_TIME:
        collecting = _collecting_pass(model, moving_free, called)
        if collecting is None:
            _warn_of_none(model, called)
            return
        try:
            _forward_passes(collecting, dataset, steps, called)
        finally:
            collecting.put_back()  # such as states and counters
        found = list(zip(collecting.layers, collecting.accumulators.read()))
    reached = [(layer, each) for layer, each in found if each.n_updates > 0]
    if not reached:
        raise ValueError(
            f"`{called.dataset}` must hold samples that reach a batch-norm "
            "layer. "
            f"Received samples for none of {_names(found)}"
        )
    if len(reached) < len(found):
        unreached = [pair for pair in found if pair[1].n_updates == 0]
        warnings.warn(
            "No sample reached these batch-norm layers, and their statistics "
            f"stay as they are: {_names(unreached)}",
            stacklevel=called.level,
        )
    _write(
        [
            pair
            for layer, statistics in reached
            for pair in _new_values(
                layer, statistics, variance, moving_free, called
            )
        ]
    )


_ONE_AT_A_TIME = threading.RLock()
"""One refit at a time: two of one model would count into each other, and models
may share layers."""


def _collecting_pass(
    model: Any, moving_free: type, called: Arguments
) -> _passes.CollectingPass | None:
    """The pass of the last refit, or a new one if the model has changed."""
    known = _passes.kept(model)
    if known is not None:
        return known
    layers = _parts.batch_norm_layers(model, trainable=True)
    if not layers:
        return None
    kinds = (moving_free, *_compat.batch_norm_layers())
    made = _passes.CollectingPass(model, _built(layers, called), kinds)
    _passes.keep(model, made)
    return made


def _forward_passes(
    collecting: _passes.CollectingPass,
    dataset: Iterable[Any],
    steps: int | None,
    called: Arguments,
) -> None:
    taken = collecting.run(dataset, steps, called.dataset)
    if taken == 0:
        raise ValueError(
            f"`{called.dataset}` must hold at least one batch. "
            "Received an empty one"
        )
    if steps is not None and taken < steps:
        raise ValueError(
            f"`{called.dataset}` must hold `{called.steps}`={steps} batches. "
            f"Received: {taken} batches"
        )


def _new_values(
    layer: Any,
    found: Statistics,
    variance: str,
    moving_free: type,
    called: Arguments,
) -> list[tuple[tf.Variable, np.ndarray]]:
    """The statistics of a layer, and what they are to be."""
    new_variance = (
        found.variance if variance == "pooled" else found.mean_of_variances
    )
    new: dict[str, Any]
    if isinstance(layer, moving_free):
        new = {
            "mean": found.mean,
            "variance": new_variance,
            "n_updates": found.n_updates,
            "n_samples": found.n_samples,
        }
    else:
        new = {"moving_mean": found.mean, "moving_variance": new_variance}
    return [_fitting(layer, name, value, called) for name, value in new.items()]


def _fitting(
    layer: Any, name: str, value: Any, called: Arguments
) -> tuple[tf.Variable, np.ndarray]:
    """A statistic and its value in its dtype and shape, if that is finite."""
    variable = _compat.tf_variable(getattr(layer, name))
    with np.errstate(over="ignore"):  # checked in the next line
        value = np.asarray(value).astype(variable.dtype.as_numpy_dtype)
    if not np.all(np.isfinite(value.astype(np.float64))):
        raise ValueError(
            f"`{called.dataset}` must give finite statistics. "
            f"Received: data that make {name} of layer {layer.name} NaN or "
            "infinite"
        )
    return variable, value.reshape(variable.shape)


def _write(values: list[tuple[tf.Variable, np.ndarray]]) -> None:
    """Assigns all, or none if one cannot be."""
    put_back = _variables.snapshot(variable for variable, _ in values)
    try:
        for variable, value in values:
            _assign(variable, value)
    except BaseException:
        put_back()
        raise


def _warn_of_none(model: Any, called: Arguments) -> None:
    frozen = _parts.batch_norm_layers(model)
    kind = "with `trainable=True`" if frozen else "of `tf.keras`"
    warnings.warn(
        f"`{called.model}` holds no batch-norm layer {kind} to refit. "
        f"Received: {called.model}={model!r}",
        stacklevel=called.level + 1,
    )


def _built(layers: list[Any], called: Arguments) -> list[Any]:
    unbuilt = [layer.name for layer in layers if not layer.built]
    if unbuilt:
        raise ValueError(
            f"`{called.model}` must be built: call it once on a batch. "
            f"Received a model with unbuilt layers: {', '.join(unbuilt)}"
        )
    return layers


def _names(found: Iterable[tuple[Any, Statistics]]) -> str:
    return ", ".join(sorted(layer.name for layer, _ in found))


def _assign(variable: tf.Variable, value: np.ndarray) -> None:
    for component in _variables.components(variable):
        component.assign(value)


def _check_arguments(
    model: Any, dataset: Any, steps: Any, variance: Any, called: Arguments
) -> None:
    if not tf.executing_eagerly():
        raise RuntimeError(
            "`refit_batch_norm` works in eager mode only: call it outside "
            "of graphs and `tf.function`."
        )
    is_model = callable(model) and hasattr(model, "variables")
    if not is_model or isinstance(model, type):
        raise TypeError(
            f"`{called.model}` must be a model or layer. "
            f"Received: {called.model}={model!r}"
        )
    _checks.choice("variance", variance, ("pooled", "mean_of_batches"))
    _checks.batches(dataset, steps, called.dataset, called.steps)
