"""Models drawn from the Gaussian of a `SWAGaussian`, put in and back."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf.batch_norm import BatchNormRefit
from swa_tf.support import checks, model_parts
from swa_tf.support import variables as variables_lib
from swa_tf.swag.gaussian import SWAGaussian
from swa_tf.swapping import averages_of, swapped_in

_MAX_SEED = 2**63 - 1


def sampled_weights(
    swag: SWAGaussian,
    target: Any,
    seed: int,
    scale: float = 0.5,
    *,
    refit_data: Iterable[Any] | None = None,
    refit_steps: int | None = None,
    refit: BatchNormRefit | None = None,
    preprocess: Callable[[Any], Any] | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Evaluates, saves or serves a sampled model inside a `with` block.

    In the block the weights are a sample from the Gaussian of `swag`,

        theta = mean + scale^(1/2) (variance^(1/2) z1 + D^T z2 / (K - 1)^(1/2))

    with K = min(n_models, rank), and z1 (a number for each weight) and z2 (K
    numbers, shared by all variables) from N(0, 1). Its covariance is
    scale * (diag(variance) + D^T D / (K - 1)). With the default scale of 1/2
    this is the sample of the paper (algorithm 1), which writes it as

        theta = mean + variance^(1/2) z1 / 2^(1/2) + D^T z2 / (2 (K - 1))^(1/2)

    With rank 0 the last term is missing; the paper's SWAG-Diagonal is that
    with a scale of 1. When the block ends the trained weights are back bit for
    bit, as from `swa_tf.averaged_weights`.

    >>> layer = tf.keras.layers.Dense(1, use_bias=False)
    >>> _ = layer(tf.ones([1, 1]))
    >>> swag = swa_tf.SWAGaussian()
    >>> for value in (1.0, 3.0, 2.0):
    ...     _ = layer.kernel.assign([[value]])
    ...     swag.apply(layer.trainable_variables)
    >>> samples = []
    >>> for seed in range(100):
    ...     with swa_tf.sampled_weights(swag, layer, seed):
    ...         samples.append(float(layer(tf.ones([1, 1]))[0, 0]))
    >>> bool(abs(np.mean(samples) - 2.0) < 0.2), float(layer.kernel[0, 0])
    (True, 2.0)

    The same averages and seed give the same sample, with TensorFlow 2.15 as
    with 2.21, on one replica or several, whichever part of the variables is in
    `target` and however the averages were taken.

    Args:
        swag: The Gaussian, of at least two models.
        target: As in `averaged_weights`.
        seed: Which sample to take: an integer in [0, 2^63).
        scale: The factor of the covariance, a number >= 0; 0 gives the mean.
        refit_data: As in `averaged_weights`. Batch-norm statistics belong to
            the weights they were computed with: each sample needs its own,
            and without it a warning says so.
        refit_steps: As in `averaged_weights`.
        refit: As in `averaged_weights`. Give the same one for every sample,
            and the model is traced once.
        preprocess: As in `averaged_weights`.

    Raises:
        RuntimeError: On entry, if `swag` has averaged fewer than two models,
            or as `averaged_weights` does.
        TypeError, ValueError: If an argument is none of the above.

    References:
        Maddox et al. 2019, A Simple Baseline for Bayesian Uncertainty in Deep
        Learning, equation 1 and algorithm 1, https://arxiv.org/abs/1902.02476.
        `scale` is that of the authors' code.
    """
    _checked(swag, seed, scale)
    if refit_data is None and model_parts.batch_norm_layers(target, True):
        warnings.warn(
            "The model has batch-norm layers, whose statistics do not belong "
            "to the sample: give `refit_data`, such as the training data.",
            stacklevel=2,
        )
    return swapped_in(
        functools.partial(assign_sample, seed=seed, scale=scale),
        swag,
        target,
        refit_data=refit_data,
        refit_steps=refit_steps,
        refit=refit,
        preprocess=preprocess,
        function="sampled_weights",
    )


def assign_sample(
    swag: SWAGaussian, var_list: Iterable[Any], seed: Any, scale: float = 0.5
) -> Any:
    """Assigns to each variable its part of a sample, cast to its dtype.

    This is `sampled_weights` by hand, between `BackupVariables.save` and
    `BackupVariables.restore`, and serves v1 graphs. It gives the same sample.

    >>> variable = tf.Variable(1.0)
    >>> swag = swa_tf.SWAGaussian()
    >>> for value in (1.0, 3.0):
    ...     _ = variable.assign(value)
    ...     swag.apply([variable])
    >>> swa_tf.assign_sample(swag, [variable], seed=0, scale=0.0)
    >>> float(variable)
    2.0

    Args:
        swag: As in `sampled_weights`.
        var_list: Variables that `swag` averages.
        seed: As in `sampled_weights`; also a scalar integer tensor, such as a
            placeholder.
        scale: As in `sampled_weights`.

    Returns:
        In a graph the op that assigns, in eager mode None.

    Raises:
        RuntimeError: If `swag` has averaged fewer than two models. In a graph
            the op raises `tf.errors.InvalidArgumentError` instead.
        TypeError, ValueError: If an argument is none of the above.
    """
    _checked(swag, seed, scale)
    variables = variables_lib.checked_list("var_list", var_list)
    averages = averages_of(swag, variables)
    places = {id(average): i for i, (_, average) in enumerate(swag.averaged)}
    assigned = []
    with tf.control_dependencies(_assert_spread(swag)):
        if not tf.is_tensor(seed):
            seed = tf.constant(seed, tf.int64)
        seed = tf.cast(seed, tf.int64)
        n_kept = tf.minimum(swag.n_models, swag._rank)
        z = _normal([swag._rank], (seed, 0), tf.float64)
        z /= tf.sqrt(tf.cast(tf.maximum(n_kept - 1, 1), tf.float64))
        for variable, average in zip(variables, averages):
            own_seed = seed, places[id(average)] + 1
            sample = _sample(swag, variable, z, scale, own_seed)
            assigned.append(variables_lib.assign([(variable, sample)]))
    return tf.group(*assigned)


def _sample(
    swag: SWAGaussian, variable: Any, z: tf.Tensor, scale: float, seed: Any
) -> tf.Tensor:
    """Returns the part of `variable` of a sample with `z` for the rows of D."""
    kept = (swag.average, swag.variance, swag.deviations)
    mean, variance, deviations = (
        variables_lib.components(of(variable))[0] for of in kept
    )
    with tf.device(mean.device):
        own_z = tf.cast(z, mean.dtype)

        def add(row: tf.Tensor, spread: tf.Tensor) -> tuple[tf.Tensor, ...]:
            deviation = deviations.sparse_read(row)
            return row + 1, spread + tf.gather(own_z, row) * deviation

        # One after the other, for the same bits in every mode, and no copy.
        spread = tf.sqrt(variables_lib.read(variance))
        spread *= _normal(mean.shape, seed, mean.dtype)
        _, spread = tf.while_loop(
            lambda row, _: row < swag._rank, add, (tf.constant(0), spread)
        )
        return variables_lib.read(mean) + scale**0.5 * spread


def _normal(shape: Any, seed: Any, dtype: tf.DType) -> tf.Tensor:
    return tf.random.stateless_normal(shape, seed, dtype=dtype, alg="philox")


def _checked(swag: Any, seed: Any, scale: Any) -> None:
    if not isinstance(swag, SWAGaussian):
        raise checks.wrong("swag", "a `SWAGaussian`", swag, TypeError)
    in_tensor = tf.is_tensor(seed) and seed.dtype.is_integer
    if not in_tensor and checks.integer("seed", seed, at_least=0) > _MAX_SEED:
        raise checks.wrong("seed", "an integer < 2^63", seed)
    checks.real("scale", scale)


def _assert_spread(swag: SWAGaussian) -> list[tf.Operation]:
    """Raises if there is no spread yet; in a graph, gives assertions."""
    message = (
        f"{swag.name} must have averaged at least two models, of which a "
        "sample can be taken"
    )
    if not tf.executing_eagerly():
        two = tf.constant(2, tf.int64)
        at_least = tf.debugging.assert_greater_equal
        return [at_least(swag.n_models, two, message=message)]
    if int(swag.n_models) < 2:
        raise RuntimeError(f"{message}. It has averaged {int(swag.n_models)}")
    return []
