"""The schedule of averaging: which steps or epochs are averaged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.support import checks


@dataclasses.dataclass(frozen=True)
class AveragingSchedule:
    """Averages from `start` on, every `period` steps or epochs.

        due(i)  =  i >= start  and  (i - start) mod period == 0

    with i counted from 0: `start` steps are left out, the next is averaged,
    then every `period`-th after it. A schedule cannot be changed.

    >>> schedule = swa_tf.AveragingSchedule(start=2, period=2)
    >>> [i for i in range(7) if schedule.due(i)]
    [2, 4, 6]

    Given to an average, it is the automatic mode of a training loop: `apply`
    is called after every optimizer step, and averages when it is due.

    >>> swa = swa_tf.StochasticWeightAveraging(when=schedule)
    >>> variable = tf.Variable(0.0)
    >>> for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
    ...     _ = variable.assign(value)
    ...     swa.apply([variable])
    >>> float(swa.average(variable)), int(swa.n_models)
    (5.0, 3)

    Another rule is a subclass with its own `due`, of integers and of tensors.
    Where `start` and `period` do not concern it, it leaves them alone:

    >>> class AtEndsOfCycles(swa_tf.AveragingSchedule):
    ...     def __init__(self, *ends):
    ...         super().__init__()
    ...         self._ends = ends
    ...
    ...     def due(self, index):
    ...         return tf.reduce_any(tf.equal(index, self._ends))
    >>> schedule = AtEndsOfCycles(9, 29, 69)   # of 10, 20 and 40 steps
    >>> [i for i in range(100) if schedule.due(i)]
    [9, 29, 69]

    Args:
        start: The first step (or epoch) to average, counted from 0: an
            integer >= 0. torchcontrib and the paper call it `swa_start`.
        period: From one average to the next, an integer >= 1: `swa_freq`, or
            the paper's cycle length c.

    Raises:
        ValueError: If `start` or `period` is none of these.
    """

    start: int = 0
    period: int = 1

    def __post_init__(self) -> None:
        start = checks.integer("start", self.start, at_least=0)
        period = checks.integer("period", self.period, at_least=1)
        vars(self).update(start=start, period=period)  # of NumPy, as of Python

    def due(self, index: Any) -> Any:
        """Whether to average after the step (or epoch) number `index`.

        An average calls it in each `apply` in eager mode, and in a graph once
        in each trace, with an int64 scalar tensor: there a subclass must
        compute in TensorFlow, and not by an `if` of Python.

        >>> swa_tf.AveragingSchedule(start=1).due(0)
        False

        Args:
            index: Counted from 0: an integer, or an integer tensor of any
                shape, also in a `tf.function`.

        Returns:
            A bool; for a tensor, a boolean tensor of its shape.
        """
        since = index - self.start
        if tf.is_tensor(since):
            on_time = tf.equal(tf.math.floormod(since, self.period), 0)
            return tf.logical_and(since >= 0, on_time)
        return bool(since >= 0 and since % self.period == 0)


def checked_due(when: AveragingSchedule, index: Any) -> Any:
    """Returns `when.due(index)`, or raises if it is no boolean scalar."""
    due = when.due(index)
    is_boolean = isinstance(due, (bool, np.bool_)) or (
        tf.is_tensor(due) and due.dtype == tf.bool and due.shape.rank == 0
    )
    if not is_boolean:
        wanted = "True, False or a boolean scalar tensor"
        raise checks.wrong("when.due(index)", wanted, due, TypeError)
    return due
