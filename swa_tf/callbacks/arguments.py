"""Checks of the arguments of `SWACallback`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import AveragingSchedule
from swa_tf.schedules import per_epoch
from swa_tf.support import checks, model_parts
from swa_tf.support import variables as variables_lib


def averaging_schedule(
    start_epoch: Any, start_step: Any, average_period: Any, unit: str
) -> AveragingSchedule | None:
    """Returns when to average, in `unit`s; None if no start is given."""
    checks.at_most_one(start_epoch=start_epoch, start_step=start_step)
    if start_epoch is not None:
        checks.integer("start_epoch", start_epoch, at_least=0)
    if start_step is not None:
        checks.integer("start_step", start_step, at_least=0)
    checks.integer("average_period", average_period, at_least=1)
    if start_step is not None and unit != "step":
        raise ValueError(
            f'`start_step` goes with unit="step". Received: {unit=}'
        )
    if start_epoch is None and start_step is None:
        return None
    # The callback starts the count of steps at 0 when `start_epoch` begins.
    start = start_epoch if unit == "epoch" else start_step or 0
    return AveragingSchedule(start, average_period)


def rate_of_epoch(
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


def variables_of(model: Any, var_list: Any) -> list[Any]:
    """Returns the variables of a model that `var_list` says."""
    if var_list is None:
        return model_parts.trained_weights(model)
    given = var_list(model) if callable(var_list) else var_list
    variables = variables_lib.checked_list("var_list", given)
    held = {weight.ref() for weight in model_parts.weights(model)}
    if not {variable.ref() for variable in variables} <= held:
        raise variables_lib.wrong("variables of the model to fit", variables)
    return variables


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
