"""A model whose weights are averages, beside the model that is trained."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import ONE_AT_A_TIME, WeightAverage, check_average
from swa_tf.batch_norm import ArgumentNames, BatchNormRefit
from swa_tf.support import checks, compat, model_parts
from swa_tf.support import variables as variables_lib

_CHOICES = ("averaged", "copied", "refitted")


class AveragedModel(variables_lib.BoundModule):
    """A model like the one that is trained, with the averages as its weights.

    It can be called at any time: in eager mode, in a `tf.function`, and in the
    training step itself, where it is the teacher of the model that it averages
    (mean teachers, BYOL, diffusion models). `update` averages the weights in,
    and is called after each step of the optimizer:

        average <- average + c * (weight - average)

    >>> model = tf.keras.Sequential([tf.keras.Input([1])])
    >>> model.add(tf.keras.layers.Dense(1, use_bias=False))
    >>> ema = swa_tf.ExponentialMovingAverage(0.75)
    >>> averaged = swa_tf.AveragedModel(model, ema)
    >>> for value in (1.0, 3.0):
    ...     model.set_weights([np.array([[value]])])  # a step of an optimizer
    ...     averaged.update()
    >>> float(averaged(tf.ones([1, 1]))[0, 0])
    1.5

    Before the first update it has the weights that the model had when it was
    made. The first update copies them anew, as that of every average.

    Its weights are the variables of the average itself, and take no memory
    beside it. (Averages of float16 and bfloat16 weights, averages on a
    `device` of their own, and those that were there before are cast or copied
    in each update.) Other floating-point variables, such as frozen weights,
    are copied in each update. Integers, such as the seeds of its dropout, are
    its own.

    It is never trained: its variables are not trainable, no `tf.GradientTape`
    watches them, and its layers are frozen. So with `training=True` its dropout
    is on, but its batch norm goes on to use its statistics. Gradients do pass
    through it to its inputs.

    `tf.train.Checkpoint(model=model, averaged=averaged)` saves and restores it
    together with its average, and training goes on bit for bit.

    Args:
        model: A built model or layer of `tf.keras`, or a `tf.Module`. Its
            trainable variables are averaged.
        average: A new average, or one of the same variables, such as
            `ExponentialMovingAverage` or `StochasticWeightAveraging`. Its
            `when` says which calls of `update` average.
        batch_norm: The batch-norm statistics: "averaged", as the weights are;
            "copied", those of the model in each update (`use_buffers=False` of
            torch's `AveragedModel`); or "refitted", those that `refit`
            computes, until then those that the model had at first.
        build: A function without arguments that returns another model of the
            same kind, built: for a subclassed model, its class called on the
            same arguments, and then on a batch. None clones a functional or
            sequential model by `tf.keras.models.clone_model`.

    Raises:
        TypeError, ValueError: If an argument is none of these; if the model
            that is built has other variables than `model`, or some of them; or
            if `average` cannot be one of these variables.
        RuntimeError: In a graph or `tf.function`.

    References:
        Tarvainen and Valpola 2017, Mean teachers are better role models,
        https://arxiv.org/abs/1703.01780; Grill et al. 2020, Bootstrap your own
        latent, https://arxiv.org/abs/2006.07733.
    """

    def __init__(
        self,
        model: Any,
        average: WeightAverage,
        *,
        batch_norm: str = "averaged",
        build: Callable[[], Any] | None = None,
    ) -> None:
        checks.eager_mode("AveragedModel", "make it before, and call it there")
        check_average("average", average)
        checks.choice("batch_norm", batch_norm, _CHOICES)
        checks.function("build", build)
        super().__init__()
        variables = _variables_of(model)
        averaged = _to_average(model, variables, batch_norm == "averaged")
        _check_average_of(average, averaged)
        clone, found = _clone(model, variables, build)
        own = dict(zip((v.ref() for v in variables), found))
        refit = BatchNormRefit(clone) if batch_norm == "refitted" else None
        # Not integers: its seeds are to give noise of their own.
        sources = {v.ref(): v for v in variables if not v.dtype.is_integer}
        variables_lib.assign(_pairs(own, sources))
        for pair in zip(*map(model_parts.layers, (model, clone))):
            _copy_adapted(*pair)
        with ONE_AT_A_TIME:
            average._prepared(averaged, begin=False, given=own)
        sources |= {v.ref(): average.average(v) for v in averaged}
        for variable in model_parts.statistics(model, True) if refit else ():
            sources.pop(variable.ref(), None)
        untracked = variables_lib.Untracked
        self._average, self._refit = average, refit
        self._model, self._averaged = untracked(clone), untracked(averaged)
        self._followed = untracked(_pairs(own, sources))
        norms = model_parts.batch_norm_layers
        self._norms = untracked(list(zip(norms(model), norms(clone))))
        # For checkpoints: every variable of the clone that the average does
        # not save itself, also those that are no weights, such as seeds.
        # Keras 2 lists vocabularies too, which are no variables.
        known = (*found, *map(compat.tf_variable, clone.variables))
        listed = [v for v in known if isinstance(v, tf.Variable)]
        averages = {each.ref() for _, each in average.averaged}
        others = {v.ref(): v for v in listed if v.ref() not in averages}
        self._variables_beside_average = list(others.values())
        variables_lib.assign(self._followed.value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the averaged model, with the arguments of the model.

        >>> model = tf.keras.Sequential([tf.keras.Input([1])])
        >>> model.add(tf.keras.layers.Dense(1, kernel_initializer="ones"))
        >>> ema = swa_tf.ExponentialMovingAverage(0.999)
        >>> averaged = swa_tf.AveragedModel(model, ema)
        >>> float(averaged(tf.ones([1, 1]), training=False)[0, 0])
        1.0
        """
        return self._model.value(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.__reduce__()

    def __reduce__(self) -> Any:
        raise TypeError(
            "`AveragedModel` can be neither copied nor pickled: it is bound to "
            "a model and an average. Make one of their copies: `copied, "
            "average = copy.deepcopy((model, average))`. For another process "
            "save it with `tf.train.Checkpoint`."
        )

    @property
    def model(self) -> Any:
        """The averaged model, to predict, evaluate and save.

        In a model loaded from its file the layers are frozen: set the
        `trainable` of each to train it.

        >>> model = tf.keras.Sequential([tf.keras.Input([1])])
        >>> model.add(tf.keras.layers.Dense(1))
        >>> ema = swa_tf.ExponentialMovingAverage(0.999)
        >>> swa_tf.AveragedModel(model, ema).model.trainable_variables
        []
        """
        return self._model.value

    @property
    def average(self) -> WeightAverage:
        """The average, which `averaged_weights` and others take as well.

        >>> model = tf.keras.Sequential([tf.keras.Input([1])])
        >>> model.add(tf.keras.layers.Dense(1))
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa_tf.AveragedModel(model, swa).average is swa
        True
        """
        return self._average

    @tf.autograph.experimental.do_not_convert
    def update(self) -> None:
        """Averages the present weights in, if it is due, and copies the rest.

        Works in eager mode and in a `tf.function`, under `tf.distribute` in
        replica and cross-replica context (in replica context not inside
        `tf.cond`: let the `when` of the average decide).

        >>> variable = tf.Variable(1.0)
        >>> class Scale(tf.Module):
        ...     def __init__(self):
        ...         self.scale = tf.Variable(2.0)
        ...     def __call__(self, x):
        ...         return self.scale * x
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> averaged = swa_tf.AveragedModel(Scale(), swa, build=Scale)
        >>> averaged.update()
        >>> float(averaged(3.0)), int(swa.n_models)
        (6.0, 1)

        Raises:
            ValueError, RuntimeError: As the `apply` of the average.
        """
        replica = tf.distribute.get_replica_context()
        if tf.distribute.has_strategy() and replica is not None:
            replica.merge_call(lambda strategy: self._update())
        else:
            self._update()

    def _update(self) -> None:
        self._average.apply(self._averaged.value)
        followed = self._followed.value
        if self._average.n_skipped is None:
            variables_lib.assign(followed)
            return
        # What is not finite is left out here as well.
        values = [(own, variables_lib.read(source)) for own, source in followed]
        floats = [value for _, value in values if value.dtype.is_floating]
        finite = variables_lib.all_finite(floats)
        for own, value in values:
            before = variables_lib.read(own)
            value = tf.where(finite, tf.cast(value, before.dtype), before)
            variables_lib.write(own, value)

    def refit(self, dataset: Iterable[Any], steps: int | None = None) -> None:
        """Computes the batch-norm statistics anew, for the present averages.

        It is a `BatchNormRefit` of the averaged model, which it traces once. A
        layer that is frozen in the model that trains is left alone.

        >>> model = tf.keras.Sequential([tf.keras.Input([1])])
        >>> model.add(tf.keras.layers.BatchNormalization())
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> averaged = swa_tf.AveragedModel(model, swa, batch_norm="refitted")
        >>> averaged.refit([tf.constant([[1.0], [2.0]])])
        >>> float(averaged.model.layers[-1].moving_mean[0])
        1.5

        Args:
            dataset: As in the call of `BatchNormRefit`.
            steps: As there.

        Raises:
            ValueError: If it was not made with `batch_norm="refitted"`: the
                next update would replace the statistics. And, as TypeError and
                RuntimeError, as `BatchNormRefit`.
        """
        if self._refit is None:
            raise ValueError(
                '`refit` is for `AveragedModel(..., batch_norm="refitted")`. '
                "Elsewhere the next `update` would replace the statistics."
            )
        norms = self._norms.value
        thawed = [own for trained, own in norms if trained.trainable]
        try:
            for layer in thawed:
                layer.trainable = True
            self._refit._run(dataset, steps, ArgumentNames())
        finally:
            for layer in thawed:
                layer.trainable = False


def _variables_of(model: Any, argument: str = "model") -> list[Any]:
    """Returns the `tf.Variable`s of a model, or raises."""
    compat.check_keras(argument, model)
    kinds = (tf.keras.layers.Layer, tf.Module)
    if not callable(model) or not isinstance(model, kinds):
        raise checks.wrong(argument, "a model or layer", model, TypeError)
    if not getattr(model, "built", True):
        wanted = "built: call it once on a batch"
        raise checks.wrong(argument, wanted, model)
    return model_parts.weights(model)


def _to_average(
    model: Any, variables: list[Any], statistics: bool
) -> list[Any]:
    """Returns the trainable variables and, if wanted, the statistics."""
    wanted = {v.ref() for v in model_parts.trained_weights(model)}
    if not wanted:
        raise checks.wrong("model", "one with trainable variables", model)
    if statistics:
        found = model_parts.statistics(model)
        wanted |= {v.ref() for v in found if v.dtype.is_floating}
    return [v for v in variables if v.ref() in wanted]


def _check_average_of(average: WeightAverage, variables: list[Any]) -> None:
    """Raises if the average has begun with other variables."""
    known = [v for v in variables if average.average(v) is not None]
    may_join = average._takes_others and not known
    if average.averaged and len(known) < len(variables) and not may_join:
        wanted = (
            "new, or of the variables to average: the trainable ones and, with "
            f'batch_norm="averaged", the statistics ({len(variables)})'
        )
        others = [name for name, _ in average.averaged]
        raise checks.wrong("average", f"{wanted}, not of {others}", average)


def _clone(
    model: Any, variables: list[Any], build: Callable[[], Any] | None
) -> tuple[Any, list[Any]]:
    """Returns a model of the same kind, which nobody trains, and its variables.

    These are in the order of `variables`.
    """
    if build is None and not compat.is_functional(model):
        raise ValueError(
            "`build` must be given for a model that is neither functional nor "
            "sequential: a function that returns another one of its kind, "
            f"built. Received: build=None, model={model!r}"
        )
    strategy = variables_lib.strategy_of(variables[0])
    with strategy.scope() if strategy else contextlib.nullcontext():
        with tf.variable_creator_scope(_untrained):
            if build is not None:
                clone = build()
            else:
                clone = tf.keras.models.clone_model(model)
                if not clone.built:
                    clone.build(model.input_shape)
    argument = "build()" if build else "clone_model(model)"
    _variables_of(clone, argument)
    # Keras 2 lists frozen variables after the others.
    for layer, own in zip(*map(model_parts.layers, (model, clone))):
        compat.list_weights_once(own)
        if own.trainable != layer.trainable:
            own.trainable = layer.trainable
    found = _variables_of(clone)
    if _kinds(found) != _kinds(variables):
        described = variables_lib.describe(variables)
        wanted = f"a model with the variables of `model`: {described}"
        raise checks.wrong(argument, wanted, variables_lib.describe(found))
    shared = {v.ref() for v in found} & {v.ref() for v in variables}
    if shared or any(v.trainable for v in found):
        wanted = "a model whose variables are made when `build` is called"
        raise checks.wrong(argument, wanted, clone)
    for layer in model_parts.layers(clone):
        layer.trainable = False
    return clone, found


def _copy_adapted(source: Any, target: Any) -> None:
    """Copies what `adapt` has found, and a layer keeps beside variables."""
    is_pair = source is not target and type(source) is type(target)
    if is_pair and hasattr(source, "adapt"):
        if hasattr(source, "save_assets"):  # it has a vocabulary
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                target.load_assets(folder)
        if target.weights:  # from which it computes more; not Keras 3's bins
            target.finalize_state()


def _kinds(variables: list[Any]) -> list[Any]:
    return [(v.dtype, v.shape) for v in variables]


def _untrained(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
    """Makes a variable that no `tf.GradientTape` watches."""
    return next_creator(**{**kwargs, "trainable": False})


def _pairs(own: dict[Any, Any], sources: dict[Any, Any]) -> list[Any]:
    """Returns each component to assign with the source of its value."""
    pairs = [(own[key], source) for key, source in sources.items()]
    others = [pair for pair in pairs if pair[0] is not pair[1]]
    return variables_lib.component_pairs(others)
