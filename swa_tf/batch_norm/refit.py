"""The refit of batch-norm statistics to the weights that a model has now."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from swa_tf.batch_norm.forward_pass import ForwardPass
from swa_tf.batch_norm.moments import Statistics
from swa_tf.batch_norm.moving_free_layer import MovingFreeBatchNormalization
from swa_tf.support import checks, compat, model_parts
from swa_tf.support import variables as variables_lib

_ONE_AT_A_TIME = threading.RLock()  # two models may share layers


@functools.cache
def _caller() -> Callable[..., Any]:
    """Returns a function that calls another with AutoGraph, as `fit` does."""
    return tf.autograph.to_graph(_call)


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


class ArgumentNames(NamedTuple):
    """The names of the arguments of a refit, for its errors and warnings."""

    model: str = "model"
    dataset: str = "dataset"
    steps: str = "steps"
    level: int = 3  # the `stacklevel` of warnings


class BatchNormRefit:
    """Computes the statistics of every batch-norm layer of a model anew.

    Without it, averaged weights are evaluated with statistics of other
    weights, and can be no better than chance. The model runs over the data in
    inference mode, without dropout, but each batch-norm layer normalizes by
    the moments of its batch. These are merged into those of all samples,

        d = mean_b - mean            n' = n + n_b
        mean <- mean + d * n_b / n'
        M2 <- M2 + n_b * var_b + d^2 * n * n_b / n'

    and at the end variance = M2 / n. For the first batch-norm layer this is
    the same, to rounding, however the data are batched.

    >>> layer = tf.keras.layers.BatchNormalization()
    >>> data = [tf.constant([[1.0], [2.0]]), tf.constant([[6.0]])]
    >>> _ = layer(data[0])
    >>> refit = swa_tf.BatchNormRefit(layer)
    >>> refit(data)
    >>> round(float(layer.moving_mean[0]), 4)
    3.0
    >>> round(float(layer.moving_variance[0]), 4)
    4.6667

    Nothing but these statistics changes: every other variable that the pass
    writes has its old value at the end. A layer with `trainable=False` is left
    alone; so is one that `model(x, training=True)` calls with `training=False`,
    as in transfer learning, in each such call. One that no batch reached, and
    batch norms of other libraries, are left alone with a warning. Use training
    data without augmentation; 1,000 to 10,000 samples are enough in practice.

    A call takes about as long as a forward pass over the data, and up to twice
    as long with small batches. The first one also traces the model, once in
    training mode, to see how layers are called, and then once a shape of
    inputs: keep the object to refit again. It traces anew when layers or
    variables were added, replaced, frozen or unfrozen. All other Python state
    is what it was at the trace: make a new object after changing it. A model
    whose batch norm is in a `tf.function`, a loop or a condition is traced by
    way of `tf.config.run_functions_eagerly`: other threads see it meanwhile,
    and AutoGraph does not convert the model's `tf.function`s.

    Several replicas give the result of one. The strategy of the model
    distributes a `tf.data.Dataset`, unless it is distributed already; batches
    of other iterables, which must be the same in every worker, are split. All
    workers must call it, and have equally many batches. Under
    `tf.distribute.ParameterServerStrategy` the coordinator computes.

    Args:
        model: A model or layer, built when the refit is called; its batch-norm
            layers may be nested. It is called as `model(x, training=False)`.
        variance: "pooled" as above, with the variance between batches; or
            "mean_of_batches", the plain mean of the batches' variances, as in
            the first published TensorFlow implementation: too small wherever
            samples of a batch resemble each other.
        preprocess: What `fit` does to inputs and a call does not: a function
            of the inputs of a batch, in TensorFlow. None is that of a KerasHub
            task (its `preprocess_samples`), for other models nothing.
        verbose: 1 shows a bar of the progress of a call that takes more than a
            second, on a terminal; or 0.

    Raises:
        TypeError: If `model` is not a model or layer of `tf.keras`, or has no
            `call`; or if `preprocess` is no function.
        ValueError: If `variance` or `verbose` is none of the above.

    References:
        Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2;
        Wu and Johnson 2021, Rethinking "Batch" in BatchNorm,
        https://arxiv.org/abs/2105.07576, section 3; Chan et al. 1979 for the
        merge.
    """

    def __init__(
        self,
        model: Any,
        variance: str = "pooled",
        preprocess: Any = None,
        *,
        verbose: int = 0,
    ) -> None:
        compat.check_keras("model", model)
        kinds = (tf.keras.layers.Layer, tf.Module)
        if not callable(model) or not isinstance(model, kinds):
            raise checks.wrong("model", "a model or layer", model, TypeError)
        call = getattr(getattr(model, "call", None), "__func__", None)
        if call is tf.keras.Model.call:
            raise TypeError(
                "`model` must have a `call`, which a refit runs over the data. "
                f"Received: {type(model).__name__} without one. Write one, or "
                "refit its parts inside `averaged_weights(swa, model)`"
            )
        checks.function("preprocess", preprocess)
        checks.choice("variance", variance, ("pooled", "mean_of_batches"))
        self._verbose = checks.verbosity(verbose)
        self._model = model
        self._preprocess = preprocess
        self._variance = variance
        self._pass: ForwardPass | None = None
        self._parts: list[tuple[int, Any, Any]] = []
        self._others: list[str] = []  # batch norms that cannot be refitted

    def __reduce__(self) -> Any:
        # A copy, or a pickle, is of a copy of the model, and traces anew.
        make = functools.partial(type(self), verbose=self._verbose)
        return make, (self._model, self._variance, self._preprocess)

    @property
    def model(self) -> Any:
        """Returns the model whose statistics are computed.

        >>> layer = tf.keras.layers.BatchNormalization()
        >>> swa_tf.BatchNormRefit(layer).model is layer
        True
        """
        return self._model

    def __call__(
        self, dataset: Iterable[Any], steps: int | None = None
    ) -> None:
        """Computes the statistics; warns if the model has no layer to refit.

        Args:
            dataset: Batches, as `tf.data.Dataset`, distributed by a strategy
                or not, or as any other iterable but a tuple. A batch that is
                a tuple or list is (x,), (x, y) or (x, y, sample_weight), as in
                `Model.fit`; anything else is x, a tensor or a dictionary.
            steps: The number of batches to take, > 0. None takes all, or as
                many as its length says.

        Raises:
            TypeError: If `dataset` is no iterable of batches.
            ValueError: If the model is not built; if `steps` is not as above;
                if `dataset` is empty, infinite without `steps`, too short for
                them, or distributed and the model is not; if a statistic is
                not finite; or if no layer was reached. No statistic has
                changed then, nor if `dataset` or the model raises.
            RuntimeError: In a graph or `tf.function`; or, on several replicas,
                if a batch-norm layer is inside a loop or a condition.
        """
        self._run(dataset, steps, ArgumentNames())

    def _run(
        self, dataset: Iterable[Any], steps: int | None, names: ArgumentNames
    ) -> None:
        """Computes the statistics, with the names of a caller's arguments."""
        checks.eager_mode("refit_batch_norm")
        n_batches = checks.batches(dataset, steps, names.dataset, names.steps)
        if isinstance(dataset, tf.keras.utils.Sequence):
            # As `fit` does: to iterate over one may shuffle it.
            dataset = map(dataset.__getitem__, range(n_batches or 0))
        with _ONE_AT_A_TIME:
            forward = self._forward_pass(names)
            found: list[Any] = []
            if forward is not None:
                taken, found = forward.run(
                    dataset, n_batches, names.dataset, self._verbose
                )
            if not found:
                left_out = f" Left out: {', '.join(self._others)}."
                warnings.warn(
                    f"`{names.model}` holds no batch-norm layer to refit, and "
                    "nothing has changed. A refit is for those of `tf.keras` "
                    "with `trainable=True` that the model calls, and not only "
                    f"with `training=False`.{left_out if self._others else ''}",
                    stacklevel=names.level,
                )
                return
            checks.enough_batches(taken, steps, names.dataset, names.steps)
            values: list[tuple[tf.Variable, tf.Tensor]] = []
            for layer, statistics in _reached(found, self._others, names):
                values += self._new_values(layer, statistics, names)
            restore = variables_lib.snapshot(v for v, _ in values)
            with variables_lib.all_or_none(restore):
                variables_lib.assign(values)

    def _forward_pass(self, names: ArgumentNames) -> ForwardPass | None:
        """Returns the last pass, or a new one if the model has changed."""
        # Parts are compared by `id`, which lasts while they are held here:
        # variables have another meaning of `==`.
        parts = [
            (id(part), getattr(part, "trainable", None), part)
            for part in model_parts.walk(self._model)
            if not isinstance(part, tf.keras.metrics.Metric)
        ]
        if self._pass is not None and parts == self._parts:
            return self._pass
        layers = model_parts.batch_norm_layers(self._model, trainable=True)
        built = [layer for layer in layers if layer.built]
        # In a model that is built, unbuilt layers are never called.
        unbuilt = [layer.name for layer in layers if not layer.built]
        if unbuilt and not getattr(self._model, "built", built):
            received = f"a model with unbuilt layers: {', '.join(unbuilt)}"
            wanted = "be built: call it once on a batch"
            raise checks.must(names.model, wanted, received)
        self._others = unbuilt + model_parts.other_batch_norms(self._model)
        self._pass = ForwardPass(self._call_model, built) if built else None
        self._parts = parts
        return self._pass

    def _call_model(self, inputs: Any, **settings: Any) -> Any:
        """Calls the model after the preprocessing that `fit` does."""
        if self._preprocess is not None:
            inputs = _caller()(self._preprocess, inputs)
        elif hasattr(self._model, "preprocess_samples"):
            batch = self._model.preprocess_samples(inputs)
            inputs = tf.keras.utils.unpack_x_y_sample_weight(batch)[0]
        return _caller()(self._model, inputs, **settings)

    def _new_values(
        self, layer: Any, found: Statistics, names: ArgumentNames
    ) -> list[tuple[tf.Variable, tf.Tensor]]:
        pooled = self._variance == "pooled"
        variance = found.variance if pooled else found.mean_of_variances
        new = {"moving_mean": found.mean, "moving_variance": variance}
        if getattr(layer, "renorm", False):
            stddev = np.sqrt(variance + layer.epsilon)
            new |= {"moving_stddev": stddev, "renorm_stddev": stddev}
            new["renorm_mean"] = found.mean
        if isinstance(layer, MovingFreeBatchNormalization):
            new = found._replace(variance=variance)._asdict()
            del new["mean_of_variances"]
        values = []
        for name, value in new.items():
            variable = compat.tf_variable(getattr(layer, name))
            with np.errstate(over="ignore"):  # checked in the next line
                value = value.astype(variable.dtype.as_numpy_dtype)
            if not np.all(np.isfinite(value.astype(np.float64))):
                made = f"data that make {name} of {layer.name} NaN or infinite"
                wanted = "give finite statistics"
                raise checks.must(names.dataset, wanted, made)
            value = tf.constant(value.reshape(variable.shape))
            values.append((variable, value))
        return values


def refit_batch_norm(
    model: Any,
    dataset: Iterable[Any],
    steps: int | None = None,
    *,
    variance: str = "pooled",
    preprocess: Callable[[Any], Any] | None = None,
    verbose: int = 0,
) -> None:
    """Computes the statistics of every batch-norm layer anew, once.

    To refit again, keep a `BatchNormRefit`: it traces the model only once.

    >>> layer = tf.keras.layers.BatchNormalization()
    >>> data = [tf.constant([[1.0], [2.0]]), tf.constant([[6.0]])]
    >>> _ = layer(data[0])
    >>> swa_tf.refit_batch_norm(layer, data)
    >>> round(float(layer.moving_mean[0]), 4)
    3.0

    Args:
        model: As in `BatchNormRefit`.
        dataset: As in its call.
        steps: As in its call.
        variance: As in `BatchNormRefit`.
        preprocess: As in `BatchNormRefit`.
        verbose: As in `BatchNormRefit`.

    Raises:
        TypeError, ValueError, RuntimeError: As `BatchNormRefit` and its call.
    """
    refit = BatchNormRefit(model, variance, preprocess, verbose=verbose)
    refit._run(dataset, steps, ArgumentNames())


def _reached(
    pairs: list[tuple[Any, Statistics]], others: list[str], names: ArgumentNames
) -> list[tuple[Any, Statistics]]:
    """Returns the layers that samples reached; warns of the others."""
    reached = [pair for pair in pairs if pair[1].n_updates > 0]
    missed = [layer.name for layer, each in pairs if each.n_updates == 0]
    if not reached:
        received = f"samples for none of {', '.join(missed)}"
        wanted = "hold samples that reach a batch-norm layer"
        raise checks.must(names.dataset, wanted, received)
    if missed + others:
        warnings.warn(
            "No sample reached these batch norms, or they are none of "
            "`tf.keras`. A refit leaves their statistics as they are: "
            + ", ".join(sorted(missed + others)),
            stacklevel=names.level + 1,
        )
    return reached
