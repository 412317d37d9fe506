"""Learning rates of training whose weights are averaged; steps count from 0."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any, Callable

import tensorflow as tf

from swa_tf.support import checks, compat

_keras = tf.keras.optimizers.schedules


def _progress(step: tf.Tensor, start: float, length: float) -> tf.Tensor:
    """Returns 0 up to `start`, 1 from `start + length` on, linear between."""
    done = tf.cast(step, tf.float64) - start  # float32 is exact up to 2^24
    if length == 0:
        return tf.cast(done > 0.0, tf.float64)
    return tf.clip_by_value(done / length, 0.0, 1.0)


def _between(first: Any, last: float, weight: tf.Tensor) -> tf.Tensor:
    """Returns `(1 - weight) * first + weight * last`, exact at 0 and 1."""
    line = first + (last - first) * weight
    return tf.where(weight < 1.0, line, tf.constant(last, tf.float64))


class _Plan(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose attributes are its arguments, with a float64 `_rate`."""

    def __init__(self, name: str | None, **numbers: float) -> None:
        super().__init__()
        self.name = name
        for argument, number in numbers.items():
            setattr(self, argument, checks.real(argument, number))

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate at `step`, of Keras's float type."""
        with tf.name_scope(self.name or type(self).__name__):
            rate = self._rate(tf.convert_to_tensor(step))
            return tf.cast(rate, tf.keras.backend.floatx())

    def get_config(self) -> dict[str, Any]:
        arguments = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in arguments}


@compat.register
class LinearRamp(_Plan):
    """A constant rate, then a straight line to another constant rate.

        rate(step) = initial                                if step <= start
        rate(step) = initial + (final - initial) * f        between
        rate(step) = final                    if step >= start + ramp_steps

    with `f = (step - start) / ramp_steps`. Both rates are exact, and the rate
    is never outside them. With `ramp_steps` 0 it jumps after `ramp_start`.

    >>> rate = swa_tf.schedules.LinearRamp(0.5, 0.1, ramp_start=2, ramp_steps=4)
    >>> [round(float(rate(step)), 3) for step in range(8)]
    [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]

    Args:
        initial_learning_rate: The rate before the ramp, finite and >= 0.
        final_learning_rate: The rate after the ramp, finite and >= 0.
        ramp_start: The last step before the ramp, finite and >= 0.
        ramp_steps: The ramp's length in steps, finite and >= 0.
        name: The name of the schedule's operations.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        final_learning_rate: float,
        ramp_start: float,
        ramp_steps: float,
        name: str | None = None,
    ) -> None:
        super().__init__(
            name,
            initial_learning_rate=initial_learning_rate,
            final_learning_rate=final_learning_rate,
            ramp_start=ramp_start,
            ramp_steps=ramp_steps,
        )

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        return _between(
            self.initial_learning_rate,
            self.final_learning_rate,
            _progress(step, self.ramp_start, self.ramp_steps),
        )


def published_plan(
    learning_rate: float,
    swa_learning_rate: float,
    swa_start: int,
    total_steps: int,
) -> LinearRamp:
    """Returns the plan of the first TensorFlow SWA: high, a ramp, low.

    Weights are averaged from `swa_start`, where a straight line begins that
    ends at step floor(0.9 * total_steps), or at once if that is earlier.

    >>> rate = swa_tf.schedules.published_plan(0.5, 0.1, 10, total_steps=20)
    >>> [round(float(rate(step)), 3) for step in (0, 10, 14, 18, 20)]
    [0.5, 0.5, 0.3, 0.1, 0.1]

    Args:
        learning_rate: The rate up to step `swa_start`, finite and >= 0.
        swa_learning_rate: The rate at the end, finite and >= 0.
        swa_start: The step at which SWA starts, an integer >= 0.
        total_steps: The steps of the training, an integer >= `swa_start`.

    Raises:
        ValueError: If an argument is out of its range.

    Source: https://github.com/JGuillaumin/swa-tf (2019), examples/train.py,
    where one step exceeds `learning_rate`.
    """
    total_steps = checks.integer("total_steps", total_steps, at_least=0)
    swa_start = checks.integer("swa_start", swa_start, at_least=0)
    if swa_start > total_steps:
        raise checks.wrong("swa_start", f"<= {total_steps=}", swa_start)
    ramp_steps = max(9 * total_steps // 10 - swa_start, 0)
    return LinearRamp(learning_rate, swa_learning_rate, swa_start, ramp_steps)


def paper_plan(
    learning_rate: float, swa_learning_rate: float, swa_start: float
) -> LinearRamp:
    """Returns the plan of the SWA paper's code: SWA starts at its low rate.

    A straight line leads from step 0.5 * swa_start to 0.9 * swa_start; weights
    are averaged from `swa_start`. Step 0 always has `learning_rate`.

    >>> rate = swa_tf.schedules.paper_plan(0.5, 0.1, swa_start=10)
    >>> [round(float(rate(step)), 3) for step in (0, 5, 6, 8, 9, 10)]
    [0.5, 0.5, 0.4, 0.2, 0.1, 0.1]

    Args:
        learning_rate: The rate before the line, finite and >= 0.
        swa_learning_rate: The rate after it, finite and >= 0.
        swa_start: The step at which SWA starts, finite and >= 0.

    Raises:
        ValueError: If an argument is out of its range.

    Source: https://github.com/timgaripov/swa, train.py, `schedule`, by the
    authors of Izmailov et al. (2018), arXiv:1803.05407.
    """
    swa_start = checks.real("swa_start", swa_start)
    ramp_start = swa_start / 2
    ramp_steps = 9 * swa_start / 10 - ramp_start
    return LinearRamp(learning_rate, swa_learning_rate, ramp_start, ramp_steps)


@compat.register
class Cyclical(_Plan):
    """A cycle in which the rate falls in a line from one rate to another.

        rate(step) = (1 - t) * max + t * min
        t          = (mod(step - start, period) + 1) / period

    and the maximum before `start`. The last step of each cycle has exactly
    the minimum: average the weights after it. The next step jumps back up.

    >>> rate = swa_tf.schedules.Cyclical(0.5, 0.1, period=4, start=2)
    >>> [round(float(rate(step)), 3) for step in range(8)]
    [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.4, 0.3]

    Args:
        max_learning_rate: The paper's alpha_1, finite and >= 0.
        min_learning_rate: The paper's alpha_2, from 0 to `max_learning_rate`.
        period: The paper's c, a cycle's length in steps, an integer >= 1.
        start: The first step of the first cycle, an integer >= 0.
        name: The name of the schedule's operations.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Izmailov et al. (2018), arXiv:1803.05407, section 3.1, whose
    iterations count from 1.
    """

    def __init__(
        self,
        max_learning_rate: float,
        min_learning_rate: float,
        period: int,
        start: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(
            name,
            max_learning_rate=max_learning_rate,
            min_learning_rate=min_learning_rate,
        )
        if self.min_learning_rate > self.max_learning_rate:
            wanted = f"<= {max_learning_rate=}"
            raise checks.wrong("min_learning_rate", wanted, min_learning_rate)
        self.period = checks.integer("period", period, at_least=1)
        self.start = checks.integer("start", start, at_least=0)

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.cast(step, tf.float64) - self.start
        weight = (tf.math.floormod(done, self.period) + 1.0) / self.period
        weight = tf.where(done < 0.0, tf.zeros_like(weight), weight)
        return _between(self.max_learning_rate, self.min_learning_rate, weight)


@compat.register
class SWALearningRate(_Plan):
    """Any learning rate up to the start of SWA, then annealed to SWA's rate.

        rate(step) = initial(step)                       if step <= swa_start
        rate(step) = (1 - w) * initial(swa_start) + w * swa     after it

    with `t = min((step - swa_start) / anneal_steps, 1)` and `w = t` ("linear")
    or `w = (1 - cos(pi * t)) / 2` ("cos"). With `anneal_steps` 0 it jumps
    after `swa_start`. SWA's rate may be above the initial one.

    >>> decay = tf.keras.optimizers.schedules.CosineDecay(0.4, decay_steps=8)
    >>> rate = swa_tf.schedules.SWALearningRate(
    ...     decay, 0.1, swa_start=4, anneal_steps=2
    ... )
    >>> [round(float(rate(step)), 3) for step in (0, 4, 5, 6, 7)]
    [0.4, 0.2, 0.15, 0.1, 0.1]

    Args:
        initial_learning_rate: The rate up to step `swa_start`: a float, finite
            and >= 0, or a `LearningRateSchedule` of Keras.
        swa_learning_rate: The rate after the annealing, finite and >= 0.
        swa_start: The last step before the annealing, an integer >= 0.
        anneal_steps: The annealing's length in steps, an integer >= 0.
        anneal_strategy: "cos" or "linear".
        name: The name of the schedule's operations.

    Raises:
        ValueError: If an argument is out of its range.

    Source: torch.optim.swa_utils.SWALR.
    """

    def __init__(
        self,
        initial_learning_rate: Any,
        swa_learning_rate: float,
        swa_start: int,
        anneal_steps: int,
        anneal_strategy: str = "cos",
        name: str | None = None,
    ) -> None:
        super().__init__(name, swa_learning_rate=swa_learning_rate)
        if not isinstance(initial_learning_rate, _keras.LearningRateSchedule):
            wanted = "a LearningRateSchedule, or a finite number >= 0"
            initial_learning_rate = checks.real(
                "initial_learning_rate", initial_learning_rate, wanted
            )
        self.initial_learning_rate = initial_learning_rate
        self.swa_start = checks.integer("swa_start", swa_start, at_least=0)
        self.anneal_steps = checks.integer("anneal_steps", anneal_steps, 0)
        checks.choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.anneal_strategy = anneal_strategy

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        initial = self.initial_learning_rate
        if isinstance(initial, _keras.LearningRateSchedule):
            held = tf.minimum(tf.cast(step, tf.float64), self.swa_start)
            initial = tf.cast(initial(tf.cast(held, step.dtype)), tf.float64)
        weight = _progress(step, self.swa_start, self.anneal_steps)
        if self.anneal_strategy == "cos":
            weight = (1.0 - tf.cos(math.pi * weight)) / 2.0
        return _between(initial, self.swa_learning_rate, weight)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        initial = self.initial_learning_rate
        if isinstance(initial, _keras.LearningRateSchedule):
            config["initial_learning_rate"] = _keras.serialize(initial)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SWALearningRate:
        initial = config["initial_learning_rate"]
        if isinstance(initial, dict):
            initial = _keras.deserialize(initial)
        return cls(**{**config, "initial_learning_rate": initial})


def _check_schedule(schedule: Any, counted: str) -> None:
    if not callable(schedule) or isinstance(schedule, type):
        wanted = f"a LearningRateSchedule, or a function of the {counted}"
        raise checks.wrong("schedule", wanted, schedule, TypeError)


def per_epoch(schedule: Callable[[int], Any]) -> Callable[[int], float]:
    """Returns a schedule as a function from an epoch to a Python float.

    `LearningRateScheduler` sets such a rate, if the optimizer's is a number.

    >>> plan = swa_tf.schedules.paper_plan(0.5, 0.1, swa_start=100)
    >>> rate = swa_tf.schedules.per_epoch(plan)
    >>> [round(rate(epoch), 3) for epoch in (0, 50, 60, 90)]
    [0.5, 0.5, 0.4, 0.1]
    >>> callback = tf.keras.callbacks.LearningRateScheduler(rate)

    Args:
        schedule: A `LearningRateSchedule`, or a function of the epoch.

    Raises:
        TypeError: If `schedule` is neither.
    """
    _check_schedule(schedule, "epoch")
    return functools.partial(_rate_of, schedule)  # a lambda is not pickled


def _rate_of(schedule: Callable[[int], Any], epoch: int) -> float:
    return float(schedule(epoch))


def plot_schedule(
    schedule: Callable[[Any], Any], steps: int, ax: Any = None
) -> Any:
    """Draws the learning rate over the steps 0 to `steps - 1`.

    It needs matplotlib, and no display.

    >>> plan = swa_tf.schedules.Cyclical(0.5, 0.1, period=10)
    >>> ax = swa_tf.schedules.plot_schedule(plan, steps=40)
    >>> len(ax.lines[0].get_xdata())
    40

    Args:
        schedule: A `LearningRateSchedule`, or a function of the step.
        steps: The number of steps to draw, an integer >= 1.
        ax: The matplotlib axes to draw on and return; None makes a figure.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If `schedule` is neither.
        ValueError: If `steps` is not an integer >= 1.
    """
    _check_schedule(schedule, "step")
    steps = checks.integer("steps", steps, at_least=1)
    if ax is None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "`plot_schedule` needs matplotlib: pip install matplotlib"
            ) from error
        # pyplot would ask for a display.
        ax = Figure().add_subplot()
    ax.plot([float(schedule(step)) for step in range(steps)])
    ax.set(xlabel="step", ylabel="learning rate")
    return ax
