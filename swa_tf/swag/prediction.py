"""The predictions of many sampled models, averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.batch_norm import BatchNormRefit
from swa_tf.support import checks, progress
from swa_tf.swag.gaussian import SWAGaussian
from swa_tf.swag.sampling import sampled_weights


def predict_samples(
    swag: SWAGaussian,
    model: Any,
    x: Any,
    seeds: Iterable[int],
    scale: float = 0.5,
    *,
    activation: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    refit_data: Iterable[Any] | None = None,
    refit_steps: int | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    verbose: int = 1,
) -> Any:
    """Returns the predictions of sampled models, averaged over the samples.

        p(y | x) = 1/S sum_s p(y | x, theta_s)

    where theta_s is the sample of the s-th seed (Bayesian model averaging).
    What is averaged must be probabilities, or the values of a regression:
    give the `activation` if the model returns logits.

    >>> model = tf.keras.Sequential([tf.keras.layers.Dense(2)])
    >>> _ = model(tf.ones([1, 3]))
    >>> swag = swa_tf.SWAGaussian()
    >>> for step in range(3):
    ...     _ = model.layers[0].bias.assign([0.0, float(step)])
    ...     swag.apply(model.trainable_variables)
    >>> x = np.ones([5, 3], np.float32)
    >>> p = swa_tf.predict_samples(
    ...     swag, model, x, range(10), activation=tf.nn.softmax, verbose=0
    ... )
    >>> p.shape, p.dtype.name, bool(np.allclose(p.sum(axis=1), 1.0))
    ((5, 2), 'float64', True)

    Afterwards the model has its trained weights, bit for bit. A sample costs
    one `model.predict` and the refit; the paper takes 30.

    Args:
        swag: As in `sampled_weights`.
        model: A Keras model with variables that `swag` averages.
        x: As in `Model.predict`. It is read once for each sample, and must come
            in the same order each time: no generator, and no `shuffle`.
        seeds: One seed for each sample, such as `range(30)`.
        scale: As in `sampled_weights`.
        activation: A function from what the model returns for all of `x` to
            predictive distributions, such as `tf.nn.softmax`; None takes them
            as they are.
        batch_size: As in `Model.predict`.
        steps: As in `Model.predict`.
        refit_data: As in `sampled_weights`; it is read once for each sample. A
            model with batch normalization needs it.
        refit_steps: As in `sampled_weights`.
        preprocess: As in `sampled_weights`.
        verbose: 1 shows a progress bar on a terminal; or 0.

    Returns:
        Arrays of float64, in the structure and the shapes that the model
        returns (after `activation`) for all of `x`.

    Raises:
        RuntimeError: As `sampled_weights` does.
        TypeError, ValueError: If an argument is none of the above.

    References:
        Maddox et al. 2019, A Simple Baseline for Bayesian Uncertainty in Deep
        Learning, algorithm 1, https://arxiv.org/abs/1902.02476.
    """
    seeds = _checked(model, x, seeds, activation)
    shown = checks.verbosity(verbose)
    refit = None
    if refit_data is not None:
        checks.batches(
            refit_data, refit_steps, "refit_data", "refit_steps", again=True
        )
        refit = BatchNormRefit(model, preprocess=preprocess)
        preprocess = None
    mean: Any = None
    with progress.bar("predicting", bool(shown)) as show:
        for n, seed in enumerate(seeds):
            with sampled_weights(
                swag,
                model,
                seed,
                scale,
                refit_data=refit_data,
                refit_steps=refit_steps,
                refit=refit,
                preprocess=preprocess,
            ):
                outputs = model.predict(x, batch_size, verbose=0, steps=steps)
            sample = outputs if activation is None else activation(outputs)
            mean = _averaged(mean, sample, n)
            show(n + 1, len(seeds))
    return mean


def _averaged(mean: Any, sample: Any, n: int) -> Any:
    """Returns the mean of `n` predictions moved by one more."""
    sample = tf.nest.map_structure(lambda p: np.asarray(p, np.float64), sample)
    if n == 0:
        return sample
    return tf.nest.map_structure(
        lambda m, p: m + (p - m) / (n + 1), mean, sample
    )


def _checked(model: Any, x: Any, seeds: Any, activation: Any) -> list[int]:
    if not isinstance(model, tf.keras.Model):
        raise checks.wrong("model", "a Keras model", model, TypeError)
    if isinstance(x, Iterator):
        wanted = "arrays or a data set, which can be read again"
        raise checks.wrong("x", wanted, x, TypeError)
    checks.function("activation", activation)
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
        wanted = "integers, such as range(30)"
        raise checks.wrong("seeds", wanted, seeds, TypeError)
    seeds = [
        checks.integer(f"seeds[{i}]", seed, at_least=0)
        for i, seed in enumerate(seeds)
    ]
    if not seeds or len(set(seeds)) < len(seeds):
        raise checks.wrong("seeds", "different integers, at least one", seeds)
    return seeds
