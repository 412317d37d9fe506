"""The arguments of `SWACallback`, checked."""

from __future__ import annotations

import dataclasses
import fractions
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf.averaging import AveragingSchedule, WeightAverage, check_each
from swa_tf.schedules import per_epoch
from swa_tf.support import checks, compat, model_parts
from swa_tf.support import variables as variables_lib


class Plan(NamedTuple):
    """When a `fit` averages, and at which learning rates."""

    when: AveragingSchedule | None  # of the average itself if None
    start_epoch: int | None
    rate: Callable[[int], float | None] | None  # None leaves it


class Variables:
    """Which variables of a model to average: `variables`, or `var_list`."""

    def __init__(self, variables: Any, var_list: Any) -> None:
        checks.at_most_one(variables=variables, var_list=var_list)
        self._name = "variables" if var_list is None else "var_list"
        given = variables if var_list is None else var_list
        if isinstance(given, str):
            checks.choice(self._name, given, ("trainable", "floating"))
        elif given is not None and not callable(given):
            given = variables_lib.checked_list(self._name, given)
        self.given = given

    def of(self, model: Any) -> list[Any]:
        """Returns those of a model that is built."""
        if self.given in (None, "trainable"):
            return model_parts.trained_weights(model)
        weights = model_parts.weights(model)
        if self.given == "floating":
            return [v for v in weights if v.dtype.is_floating]
        given = self.given(model) if callable(self.given) else self.given
        variables = variables_lib.checked_list(self._name, given)
        check_each(variables, device=None, argument=self._name)
        held = {weight.ref() for weight in weights}
        if not {variable.ref() for variable in variables} <= held:
            wanted = "variables of the model to fit"
            raise variables_lib.wrong(wanted, variables, argument=self._name)
        return variables


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every `fit` of a `SWACallback` goes by."""

    plan: Callable[..., Plan]  # of the schedule of `averages`, and the epochs
    unit: str
    variables: Variables
    refit: dict[str, Any]  # `refit_data` and `refit_steps`, or empty
    preprocess: Callable[[Any], Any] | None
    evaluate: str
    averages: WeightAverage | None  # None makes a new one for each `fit`
    keep: bool  # whether the model has the averages at the end
    filepath: str | os.PathLike[str] | None
    best_by: tuple[str, str] | None  # the figure, and its mode
    verbose: int


def plan(
    start_epoch: Any,
    start_step: Any,
    average_period: Any,
    unit: str,
    swa_learning_rate: Any,
    schedule: Any,
    *,
    own: AveragingSchedule | None,
    epochs: int | None,
) -> Plan:
    """Returns the plan of a `fit` of so many epochs; `own` is the average's."""
    checks.at_most_one(start_epoch=start_epoch, start_step=start_step)
    if start_epoch is not None:
        start_epoch = _first_epoch(start_epoch, epochs)
    if start_step is not None:
        checks.integer("start_step", start_step, at_least=0)
    checks.integer("average_period", average_period, at_least=1)
    if start_step is not None and unit != "step":
        raise ValueError(
            f'`start_step` goes with unit="step". Received: {unit=}'
        )
    when = None
    if start_epoch is not None or start_step is not None:
        # The callback starts the count of steps at 0 when `start_epoch` begins.
        start = start_epoch if unit == "epoch" else start_step or 0
        when = AveragingSchedule(start, average_period)
    known = when or own
    first = known.start if known and unit == "epoch" else start_epoch
    rate = _rate_of_epoch(swa_learning_rate, schedule, first)
    return Plan(when, start_epoch, rate)


def _first_epoch(start_epoch: Any, epochs: int | None) -> int:
    """Returns the first epoch to average; a part of all is rounded down."""
    wanted = "an integer >= 0, or a part of the epochs in (0, 1)"
    is_float = isinstance(start_epoch, (float, np.floating))
    if is_float and 0 < start_epoch < 1:
        if epochs is None:
            wanted = (
                'an integer, since no `set_params({"epochs": ...})` has said '
                "how many epochs there are"
            )
            raise checks.wrong("start_epoch", wanted, start_epoch)
        # As it is written: 0.29 of 100 is 29, and not less.
        return int(fractions.Fraction(str(start_epoch)) * epochs)
    return checks.integer("start_epoch", start_epoch, at_least=0, wanted=wanted)


def _rate_of_epoch(
    swa_learning_rate: Any, schedule: Any, first_epoch: int | None
) -> Callable[[int], float | None] | None:
    """Returns a function from an epoch to its rate, or None to leave it."""
    checks.at_most_one(swa_learning_rate=swa_learning_rate, schedule=schedule)
    if schedule is not None:
        return functools.partial(_checked_rate, per_epoch(schedule))
    if swa_learning_rate is None:
        return None
    rate = checks.real("swa_learning_rate", swa_learning_rate)
    if first_epoch is None:
        raise ValueError(
            "`swa_learning_rate` goes with `start_epoch`: it is set at the "
            "beginning of epochs. For a rate by steps give the optimizer "
            "`swa_tf.schedules.SWALearningRate`. "
            f"Received: {swa_learning_rate=}"
        )
    return functools.partial(_rate_from, first_epoch, rate)


def _rate_from(first_epoch: int, rate: float, epoch: int) -> float | None:
    return rate if epoch >= first_epoch else None


def _checked_rate(rate_of: Callable[[int], float], epoch: int) -> Any:
    try:
        rate: Any = rate_of(epoch)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`schedule` must give a number for epoch {epoch}: {error}"
        ) from error
    return checks.real(f"schedule({epoch})", rate)


def refit_arguments(
    refit_data: Any, refit_steps: Any, preprocess: Any, again: bool
) -> dict[str, Any]:
    """Returns the data of a refit and their steps; empty without."""
    checks.function("preprocess", preprocess)
    if refit_data is not None:
        refit = {"refit_data": refit_data, "refit_steps": refit_steps}
        checks.batches(*refit.values(), *refit, again=again)
        return refit
    if refit_steps is not None or preprocess is not None:
        raise ValueError(
            "`refit_data` must be given with `refit_steps` or "
            f"`preprocess`. Received: {refit_steps=}, {preprocess=} alone"
        )
    return {}


def check_batches(model: Any, refit_data: Any) -> None:
    """Raises if a model to refit would get single samples for batches.

    Only models that Keras puts together and `tf.data` say which shapes they
    have. Keras itself may append an axis of size 1 to a batch.
    """
    if (
        not compat.is_functional(model)
        or not isinstance(refit_data, tf.data.Dataset)
        or not model_parts.batch_norm_layers(model, trainable=True)
    ):
        return
    inputs = getattr(model, "inputs", None) or []
    x, *_ = tf.keras.utils.unpack_x_y_sample_weight(refit_data.element_spec)
    if len(inputs) != 1 or not isinstance(x, tf.TensorSpec):
        return
    wanted = tf.TensorShape([None, *inputs[0].shape[1:]])
    is_sample = x.shape.rank is not None and x.shape.rank == wanted.rank - 1
    if is_sample and not x.shape.concatenate([1]).is_compatible_with(wanted):
        what = f"hold batches of shape {wanted}, as `.batch(32)` makes them"
        raise checks.must("refit_data", what, f"elements of shape {x.shape}")


def check_best(monitor: Any, mode: Any, evaluate: str, leaves: bool) -> None:
    """Raises unless `restore_best_averages` can be had."""
    if not isinstance(monitor, str) or not monitor.startswith("swa_val_"):
        wanted = 'the name of a figure of the averages, such as "swa_val_loss"'
        raise checks.wrong("monitor", wanted, monitor)
    checks.choice("mode", mode, ("auto", "min", "max"))
    if evaluate == "trained":
        wanted = '"both" or "averaged" with `restore_best_averages`'
        raise checks.wrong("evaluate", wanted, evaluate)
    if not leaves:
        wanted = '"averaged" with `restore_best_averages`, or `filepath` given'
        raise checks.wrong("final_weights", wanted, "trained")


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
