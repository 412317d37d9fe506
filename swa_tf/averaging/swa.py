"""The equal average of weights."""

from __future__ import annotations

import tensorflow as tf

from swa_tf.averaging.averaging_schedule import AveragingSchedule
from swa_tf.averaging.weight_average import WeightAverage


class StochasticWeightAveraging(WeightAverage):
    """The equal average of all models seen (SWA).

        average <- average + (weight - average) / (n_models + 1)

    so that after n calls of `apply` the average is the mean of n models. Use
    it as `tf.train.ExponentialMovingAverage`: call `apply` after an optimizer
    step, from the epoch on at which averaging is to start, and evaluate under
    `swa_tf.averaged_weights`. A model with batch normalization needs
    `swa_tf.refit_batch_norm` there.

    >>> model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    >>> _ = model(tf.ones([1, 2]))
    >>> swa = swa_tf.StochasticWeightAveraging()
    >>> swa.apply(model.trainable_variables)      # at the end of an epoch
    >>> with swa_tf.averaged_weights(swa, model):
    ...     output = model(tf.ones([1, 2]))       # of the averaged model
    >>> int(swa.n_models)
    1

    The object is a `tf.Module`: `tf.train.Checkpoint(model=model,
    optimizer=optimizer, swa=swa)` saves it and restores it, also before the
    first `apply`, and training goes on bit for bit.

    Rounding: each update is rounded to float32 (float64 for float64), up or
    down in proportion, so that errors cancel rather than add up. 1,000 updates
    stay within 3e-6 of the exact mean, relative to the largest weight, also of
    weights that drift by less than float32 can add to their average, where a
    plain running mean stands still (3e-5 off for a drift of 1e-4). Equal
    weights average to themselves.

    Args:
        name: Suffix of the names of the shadow variables.
        when: The automatic mode: `apply` is called after every step (or
            epoch) and averages when this schedule says so. None is the manual
            mode: each call averages.
        device: Where the averages are kept and updated, for example "/cpu:0"
            for a model that fills its accelerator; each update then sends the
            weights there. None keeps each where its variable is. Must be None
            for variables of a strategy.
        skip_nonfinite: Whether a model with a NaN or an infinity in any of its
            weights is left out, and counted in `n_skipped`. It costs one pass
            of reading over the weights; the bits are the same.

    References:
        Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and
        Better Generalization, equation in section 3.1,
        https://arxiv.org/abs/1803.05407. The form with c is the running mean
        of Welford 1962.
    """

    def __init__(
        self,
        name: str = "StochasticWeightAveraging",
        when: AveragingSchedule | None = None,
        device: str | None = None,
        *,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(name, when, device, skip_nonfinite)

    def coefficient(self, n_models: tf.Tensor) -> tf.Tensor:
        """Returns 1 / (n_models + 1), which gives each model equal weight.

        >>> n_models = tf.constant(3, tf.int64)
        >>> float(swa_tf.StochasticWeightAveraging().coefficient(n_models))
        0.25

        Args:
            n_models: The number of models already averaged: an int64 scalar.
        """
        return 1.0 / tf.cast(n_models + 1, tf.float64)
