"""The average with a power-function profile: it grows with the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.averaging.averaging_schedule import AveragingSchedule
from swa_tf.averaging.weight_average import WeightAverage
from swa_tf.support import checks

_MAX_WIDTH = 12.0**-0.5  # of the equal average, whose profile is uniform


class PowerFunctionAverage(WeightAverage):
    """The average whose length grows with the training (power-function EMA).

        average <- average + (1 - beta(t)) * (weight - average)
        beta(t)  =  (1 - 1 / t)^(gamma + 1),    t = n_models + 1

    In the average of T models the t-th has the weight

        (t / T)^(gamma + 1) - ((t - 1) / T)^(gamma + 1),

    which grows as t^gamma. The relative width is the standard deviation of t
    under these weights, divided by T. At a relative width of 0.1, 83 % of the
    average come from the last fifth of the models, however many there are.
    `posthoc_average` makes averages of other widths from checkpoints of two
    such averages.

    >>> variable = tf.Variable(0.0)
    >>> average = swa_tf.PowerFunctionAverage(relative_width=18**-0.5)
    >>> for value in (1.0, 2.0, 3.0, 4.0):     # this width has gamma = 1
    ...     _ = variable.assign(value)
    ...     average.apply([variable])
    >>> round(float(average.average(variable)), 6)  # (1 + 3*2 + 5*3 + 7*4) / 16
    3.125

    The t counts averaged models, not steps: with a `when` of any start and
    period, and with one call of `apply` an epoch, the profile has the same
    relative width, over the models that were averaged.

    A checkpoint holds the relative width too. To restore one of another width,
    or of another kind of average, raises `ValueError`: the average would have
    neither profile.

    Args:
        relative_width: The standard deviation of the profile as a share of all
            models averaged, from 1e-6 to 12^-0.5 = 0.2887; sigma_rel in the
            paper. The largest is the equal average of all models.
        name: Suffix of the names of the shadow variables.
        when: As in `StochasticWeightAveraging`.
        device: As in `StochasticWeightAveraging`.
        skip_nonfinite: As in `StochasticWeightAveraging`.

    Raises:
        ValueError: If `relative_width` is not in that range.

    References:
        Karras et al. 2024, Analyzing and Improving the Training Dynamics of
        Diffusion Models, section 3.1 and appendix C, equations 123 to 127,
        https://arxiv.org/abs/2312.02696.
    """

    def __init__(
        self,
        relative_width: float,
        name: str = "PowerFunctionAverage",
        when: AveragingSchedule | None = None,
        device: str | None = None,
        *,
        skip_nonfinite: bool = False,
    ) -> None:
        self._gamma = gamma_of("relative_width", relative_width)
        self._relative_width = float(relative_width)
        super().__init__(name, when, device, skip_nonfinite=skip_nonfinite)

    @property
    def relative_width(self) -> float:
        """The relative width of the profile.

        >>> swa_tf.PowerFunctionAverage(0.1).relative_width
        0.1
        """
        return self._relative_width

    def _layout(self) -> dict[str, Any]:
        return {"relative_width": self._relative_width}

    def coefficient(self, n_models: tf.Tensor) -> tf.Tensor:
        """Returns 1 - (n_models / (n_models + 1))^(gamma + 1).

        >>> average = swa_tf.PowerFunctionAverage(18**-0.5)  # gamma = 1
        >>> round(float(average.coefficient(tf.constant(3, tf.int64))), 9)
        0.4375

        Args:
            n_models: The number of models already averaged: an int64 scalar.
        """
        n = tf.cast(n_models, tf.float64)
        # Near 1 the power would lose the digits that count after many models.
        return -tf.math.expm1(-(self._gamma + 1.0) * tf.math.log1p(1.0 / n))


def gamma_of(name: str, relative_width: Any) -> float:
    """Returns the exponent of the profile of this relative width, or raises.

    It solves gamma + 1 = (gamma + 2)^2 (gamma + 3) width^2, a cubic, by which a
    density as t^gamma on [0, 1] has this standard deviation (algorithm 2). The
    error gives `name` to the argument.
    """
    wanted = "a number from 1e-6 to 12^-0.5 = 0.2887"
    width = checks.real(
        name, relative_width, wanted, lambda w: 1e-6 <= w <= _MAX_WIDTH
    )
    t = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return max(0.0, float(roots.real.max()))
