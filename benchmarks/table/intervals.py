"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the standard deviation, with n - 1.

    >>> mean_and_deviation([1.0, 2.0, 3.0])
    (2.0, 1.0)

    The deviation of a single value is None.
    """
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float], level: float) -> list[float] | None:
    """Returns the interval of the mean by Student's t.

        mean +- t(n - 1) * deviation / sqrt(n)

    Args:
        values: A sample; of differences, for a paired comparison.
        level: The share of such intervals that hold the true mean.

    Returns:
        Its two ends; None for a single value, which tells nothing.

    Source: Student 1908, The Probable Error of a Mean,
    https://doi.org/10.1093/biomet/6.1.1.
    """
    mean, deviation = mean_and_deviation(values)
    if deviation is None:
        return None
    t = float(stats.t.ppf(0.5 + level / 2.0, len(values) - 1))
    half = t * deviation / math.sqrt(len(values))
    return [mean - half, mean + half]
