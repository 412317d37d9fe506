"""Averages of weights: average <- average + c * (weight - average)."""

from swa_tf.averaging import rounding
from swa_tf.averaging.averaging_schedule import AveragingSchedule
from swa_tf.averaging.decay import scaled_decay
from swa_tf.averaging.exponential import ExponentialMovingAverage
from swa_tf.averaging.power_function import PowerFunctionAverage, gamma_of
from swa_tf.averaging.swa import StochasticWeightAveraging
from swa_tf.averaging.variable_checks import check_each
from swa_tf.averaging.weight_average import (
    ONE_AT_A_TIME,
    WeightAverage,
    check_average,
)

__all__ = [
    "ONE_AT_A_TIME",
    "AveragingSchedule",
    "ExponentialMovingAverage",
    "PowerFunctionAverage",
    "StochasticWeightAveraging",
    "WeightAverage",
    "check_average",
    "check_each",
    "gamma_of",
    "rounding",
    "scaled_decay",
]
