"""Learning-rate plans, and their rates worked out by hand."""

import math

import tensorflow as tf

from swa_tf import schedules
from swa_tf.support import compat

keras = tf.keras.optimizers.schedules


@compat.register
class WarmUp(keras.LearningRateSchedule):
    """A user's own: `step / 8`, for one step at a time."""

    def __call__(self, step):
        assert step.shape.rank == 0
        return tf.cast(step, tf.float32) / 8

    def get_config(self):
        return {}


# Half-way angles: (1 - cos(pi k / 4)) / 2 is 0, A, 1/2, 1 - A, 1.
A = (2 - math.sqrt(2)) / 4


# What makes a plan, its rates by hand from step 0 on, and the working. Every
# edge is there, and a step on either side.
BY_HAND = {
    # 0.5 to 0.1 in 4 steps after step 2, so by 0.1 a step.
    "ramp": (
        lambda: schedules.LinearRamp(0.5, 0.1, ramp_start=2, ramp_steps=4),
        [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
    ),
    "ramp from the first step": (
        lambda: schedules.LinearRamp(1.0, 0.0, ramp_start=0, ramp_steps=2),
        [1.0, 0.5, 0.0, 0.0],
    ),
    "ramp of no steps": (
        lambda: schedules.LinearRamp(1.0, 0.25, ramp_start=2, ramp_steps=0),
        [1.0, 1.0, 1.0, 0.25, 0.25],
    ),
    "rising ramp": (
        lambda: schedules.LinearRamp(0, 1, ramp_start=0, ramp_steps=4),
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0],
    ),
    # From 1.5 to 3.5: steps 2 and 3 are 1/4 and 3/4 of the way.
    "ramp between steps": (
        lambda: schedules.LinearRamp(1.0, 0.0, ramp_start=1.5, ramp_steps=2.0),
        [1.0, 1.0, 0.75, 0.25, 0.0, 0.0],
    ),
    # From 1.25 to 1.75: no step falls on it.
    "ramp within a step": (
        lambda: schedules.LinearRamp(1.0, 0.0, ramp_start=1.25, ramp_steps=0.5),
        [1.0, 1.0, 0.0, 0.0],
    ),
    # From 0.5 * 10 = 5 to 0.9 * 10 = 9, so by 0.1 a step.
    "paper": (
        lambda: schedules.paper_plan(0.5, 0.1, swa_start=10),
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1],
    ),
    # From 2.5 to 4.5: steps 3 and 4 are 1/4 and 3/4 of the way.
    "paper, edges between steps": (
        lambda: schedules.paper_plan(1.0, 0.0, swa_start=5),
        [1.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0],
    ),
    # From 0.5 to 0.9.
    "paper, SWA from step 1": (
        lambda: schedules.paper_plan(1.0, 0.5, swa_start=1),
        [1.0, 0.5, 0.5],
    ),
    "paper, SWA from the start": (
        lambda: schedules.paper_plan(1.0, 0.5, swa_start=0),
        [1.0, 0.5, 0.5],
    ),
    # The paper's i = step - 2 + 1; t = 1/4, 2/4, 3/4, 4/4, 1/4, ...
    "cyclical": (
        lambda: schedules.Cyclical(0.5, 0.1, period=4, start=2),
        [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.4, 0.3, 0.2, 0.1, 0.4],
    ),
    "cyclical from the first step": (
        lambda: schedules.Cyclical(0.5, 0.1, period=2),
        [0.3, 0.1, 0.3, 0.1],
    ),
    "cycles of one step": (
        lambda: schedules.Cyclical(0.5, 0.1, period=1, start=2),
        [0.5, 0.5, 0.1, 0.1],
    ),
    "cycles between equal rates": (
        lambda: schedules.Cyclical(0.3, 0.3, period=3, start=1),
        [0.3] * 6,
    ),
    # 0.5 - 0.4 w, with w = 1/4, 2/4, 3/4, 1 after step 2.
    "annealed linearly": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 2, 4, "linear"),
        [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
    ),
    # 0.5 - 0.4 w, with w = A, 1/2, 1 - A, 1 after step 2.
    "annealed by cosine": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 2, 4),
        [0.5, 0.5, 0.5, 0.5 - 0.4 * A, 0.3, 0.1 + 0.4 * A, 0.1, 0.1],
    ),
    "annealed upwards": (
        lambda: schedules.SWALearningRate(0, 1, 0, 4),
        [0.0, A, 0.5, 1 - A, 1.0, 1.0],
    ),
    "annealed in no steps": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 2, 0),
        [0.5, 0.5, 0.5, 0.1, 0.1],
    ),
    "annealed at once": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 0, 0, "linear"),
        [0.5, 0.1, 0.1],
    ),
    # 0.2 * (1 + cos(pi step / 8)) up to step 4, which has 0.2; then by 0.05
    # down to 0.1, while the decay itself would go on to 0 at step 8.
    "cosine decay, then linear": (
        lambda: schedules.SWALearningRate(
            keras.CosineDecay(0.4, decay_steps=8), 0.1, 4, 2, "linear"
        ),
        [0.4 - 0.4 * (1 - math.cos(math.pi * i / 8)) / 2 for i in range(5)]
        + [0.15, 0.1, 0.1],
    ),
    # Half-way to 0.25 - 0.125 * 1/2 at step 3.
    "constant pieces, then cosine": (
        lambda: schedules.SWALearningRate(
            keras.PiecewiseConstantDecay([0, 3], [0.5, 0.25, 0.0]), 0.125, 2, 2
        ),
        [0.5, 0.25, 0.25, 0.1875, 0.125, 0.125],
    ),
    "warm-up, then a jump": (
        lambda: schedules.SWALearningRate(WarmUp(), 0.5, 2, 0),
        [0.0, 0.125, 0.25, 0.5, 0.5],
    ),
    # 1, 1, then half-way to 0.5 and there; held at step 3; then to 0 by 1/2.
    "annealed twice": (
        lambda: schedules.SWALearningRate(
            schedules.SWALearningRate(1.0, 0.5, 1, 2), 0.0, 3, 2
        ),
        [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
    ),
}
