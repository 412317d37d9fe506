"""Helpers of the tests of exponential averages."""

import numpy as np
import tensorflow as tf


def ema_of(values, decays, start):
    """The average of `values`, from `start`, in float64."""
    average = np.asarray(start, np.float64)
    for value, decay in zip(values, decays):
        average = decay * average + (1.0 - decay) * np.asarray(value, float)
    return average


def run_updates(average, variable, values):
    for value in values:
        variable.assign(tf.fill(variable.shape, tf.cast(value, variable.dtype)))
        average.apply([variable])
    return average.average(variable).numpy()


MODES = ["eager", "function", "xla"]


def apply_in(ema, mode, *variables):
    """A function that averages them, traced at its first call."""

    def update():
        ema.apply(variables)

    if mode == "eager":
        return update
    return tf.function(update, jit_compile=mode == "xla")
