"""Swapping averages into a model and the trained weights back.

Swaps assign; they never add and subtract, which would lose bits. Assigning a
whole value shares its buffer, so a swap copies nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from swa_tf import _checks, _compat, _parts, _swaps, _variables
from swa_tf._forward_pass import ArgumentNames
from swa_tf.averaging import ONE_AT_A_TIME, WeightAverage
from swa_tf.refit import BatchNormRefit


class BackupVariables(tf.Module):
    """Variables that keep the values of others, to be put back later.

    With `assign_averages` this is the published recipe: save, swap in,
    evaluate, restore. It serves v1 graphs, where each step is an op to run in
    a session, and whoever swaps by hand; `averaged_weights` does all of it.

    >>> variable = tf.Variable(1.0)
    >>> backup = swa_tf.BackupVariables([variable])
    >>> backup.save()
    >>> _ = variable.assign(5.0)
    >>> backup.restore()
    >>> float(variable)
    1.0

    Restoring is exact to the bit, in every component of a distributed
    variable. Before the first `save` the backup holds the values that the
    variables had when it was made.

    Args:
        var_list: Variables of any dtype and shape, of any Keras or plain.
        device: Where the backup is kept, for example "/cpu:0" for a model that
            fills its accelerator. None keeps each where its variable is.

    Raises:
        TypeError: If `var_list` is not a list of variables.
        ValueError: If it is empty, or if `device` is given inside
            `strategy.scope()`.
    """

    def __init__(
        self, var_list: Iterable[Any], device: str | None = None
    ) -> None:
        super().__init__()
        _variables.check_device(device)
        components = [
            component
            for variable in _variables.checked_list("var_list", var_list)
            for component in _variables.components(variable)
        ]
        self._originals = _variables.Untracked(components)
        self._backups: list[tf.Variable] = []
        with tf.init_scope():
            for component in components:
                self._backups.append(
                    _variables.local_variable(
                        _variables.initial_value(component),
                        f"{_compat.variable_name(component)}/backup",
                        device or component.device,
                    )
                )

    def save(self) -> Any:
        """Copies the variables into the backup.

        >>> swa_tf.BackupVariables([tf.Variable(1.0)]).save()

        Returns:
            In a graph the op that copies, in eager mode None.
        """
        return _assign_all(zip(self._backups, self._originals.value))

    def restore(self) -> Any:
        """Copies the backup into the variables.

        >>> swa_tf.BackupVariables([tf.Variable(1.0)]).restore()

        Returns:
            In a graph the op that copies, in eager mode None.
        """
        return _assign_all(zip(self._originals.value, self._backups))


def assign_averages(swa: WeightAverage, var_list: Iterable[Any]) -> Any:
    """Assigns to each variable its average, cast to the variable's dtype.

    The step between `BackupVariables.save` and `BackupVariables.restore`.
    Nothing guards a swap by hand: do not call `apply`, and do not write a
    checkpoint, before the restore.

    >>> variable = tf.Variable(1.0)
    >>> swa = swa_tf.StochasticWeightAveraging()
    >>> swa.apply([variable])
    >>> _ = variable.assign(3.0)
    >>> swa.apply([variable])
    >>> swa_tf.assign_averages(swa, [variable])
    >>> float(variable)
    2.0

    Args:
        swa: The averages.
        var_list: Variables that `swa` averages.

    Returns:
        In a graph the op that assigns, in eager mode None.

    Raises:
        TypeError: If `swa` is no `WeightAverage`, or `var_list` no list of
            variables.
        ValueError: If `var_list` is empty or holds a variable that `swa` does
            not average.
        RuntimeError: If nothing was averaged yet, or not each of them. In a
            graph the op raises `tf.errors.InvalidArgumentError` instead.
    """
    _check_average(swa)
    variables = _variables.checked_list("var_list", var_list)
    averages = _averages_of(swa, variables)
    with tf.control_dependencies(swa.assert_averaged(variables)):
        return _assign_all(
            pair
            for variable, average in zip(variables, averages)
            for pair in _variables.component_pairs(variable, average)
        )


@contextlib.contextmanager
def averaged_weights(
    swa: WeightAverage,
    target: Any,
    *,
    refit_data: Iterable[Any] | None = None,
    refit_steps: int | None = None,
    refit: BatchNormRefit | None = None,
    keep: bool = False,
) -> Iterator[None]:
    """Evaluates, saves or serves the averaged model inside a `with` block.

    At the start the averages take the place of the trained weights; at the
    end, whatever happened inside, the trained weights are back bit for bit.
    Given a model, so are its batch-norm statistics and every other weight.
    Inside, `model.save(...)` writes the averaged model. With `keep=True` the
    model stays averaged after the block, unless an exception leaves it. Blocks
    of several averages may end in any order: the last end restores what was
    there before the first began.

    >>> layer = tf.keras.layers.Dense(1, use_bias=False)
    >>> _ = layer(tf.ones([1, 1]))
    >>> swa = swa_tf.StochasticWeightAveraging()
    >>> for value in (1.0, 3.0):
    ...     _ = layer.kernel.assign([[value]])
    ...     swa.apply(layer.trainable_variables)
    >>> with swa_tf.averaged_weights(swa, layer):
    ...     inside = float(layer(tf.ones([1, 1]))[0, 0])
    >>> inside, float(layer(tf.ones([1, 1]))[0, 0])
    (2.0, 3.0)

    Batch-norm statistics belong to the weights they were computed with. Give
    `refit_data`, or call `swa_tf.refit_batch_norm` inside the block, for a
    model that has such layers. (A `MovingFreeBatchNormalization` uses them
    only where it is called with `use_moving_statistics=False`.)

    Args:
        swa: The averages. They must have been updated at least once.
        target: A model or layer (anything with `weights` or `variables`), of
            which those that `swa` averages are swapped; or a list of
            variables, all of which `swa` must average.
        refit_data: Batches for `refit_batch_norm`; `target` must be a model.
        refit_steps: Its `steps`.
        refit: A `BatchNormRefit` of `target`, to be called with them. Given
            the same one each time, the model is traced once. None makes one.
        keep: Whether the averages stay when the block ends without an
            exception: for the end of the training.

    Raises:
        RuntimeError: On entry, if nothing was averaged yet, or not each of
            the variables to swap (an `ExponentialMovingAverage` may have
            averaged some and others not), if the averages of `swa` are already
            swapped in, or in a graph or `tf.function`, where a `with` block has
            no meaning when the graph runs: use `BackupVariables` and
            `assign_averages` there.
        TypeError: If `swa` is no `WeightAverage`, `target` neither a model nor
            a list of variables, `refit` no `BatchNormRefit`, or `keep` no
            bool.
        ValueError: If `swa` averages no variable of `target`, if `refit_steps`
            or `refit` is given without `refit_data`, if `refit` is of another
            model, or as `refit_batch_norm` does.
    """
    if not tf.executing_eagerly():
        raise RuntimeError(
            "`averaged_weights` works in eager mode only. In a graph or a "
            "`tf.function` use the ops of `BackupVariables` and "
            "`assign_averages`."
        )
    _check_average(swa)
    keep = _checks.boolean("keep", keep)
    if refit_data is not None:
        refit = _checked_refit(refit, target)
    elif refit_steps is not None or refit is not None:
        useless = "refit" if refit_steps is None else "refit_steps"
        raise ValueError(
            f"`refit_data` must be given for `{useless}` to be of use. "
            f"Received: {useless}={refit_steps or refit} alone"
        )
    swap = _swaps.Swap()
    try:
        try:
            _swap_in(swa, target, swap)
            if refit is not None and refit_data is not None:
                refit._run(refit_data, refit_steps, _NAMES_IN_REFIT)
            yield
            if keep:
                swap.keep()
        finally:
            _swap_out(swa, swap)
    finally:  # again, for an interrupt may come before that has begun
        _swap_out(swa, swap)


_NAMES_IN_REFIT = ArgumentNames(
    "target",
    "refit_data",
    "refit_steps",
    level=4,  # `contextlib` calls `averaged_weights`
)


def _checked_refit(refit: Any, target: Any) -> BatchNormRefit:
    if not _is_model(target):
        raise TypeError(
            "`target` must be a model for `refit_data` to be of use. "
            f"Received: target of type {type(target).__name__}"
        )
    if refit is None:
        return BatchNormRefit(target)
    if not isinstance(refit, BatchNormRefit):
        raise TypeError(
            "`refit` must be a `BatchNormRefit` or None. "
            f"Received: refit={refit!r}"
        )
    if refit.model is not target:
        raise ValueError(
            "`refit` must be of the model `target`. "
            f"Received: a refit of {refit.model!r}"
        )
    return refit


def _swap_in(swa: WeightAverage, target: Any, swap: _swaps.Swap) -> None:
    with ONE_AT_A_TIME:
        if swa.swapped:
            raise RuntimeError(
                f"The averages of {swa.name} are swapped in already: "
                "`averaged_weights` cannot be entered twice."
            )
        swa.assert_averaged()
        kept, swapped = _kept_and_swapped(swa, target)
        swa.assert_averaged(swapped)
        swap.begin(kept)
        swa._mark_swapped(True)
        assign_averages(swa, swapped)


def _swap_out(swa: WeightAverage, swap: _swaps.Swap) -> None:
    """Puts the weights back, however often it is interrupted."""
    interrupt = None
    while swap.is_in:
        try:
            with ONE_AT_A_TIME:
                swap.put_back()
                swa._mark_swapped(False)
                swap.end()
        except (KeyboardInterrupt, SystemExit) as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _check_average(swa: Any) -> None:
    if not isinstance(swa, WeightAverage):
        raise TypeError(
            "`swa` must be a `WeightAverage`, such as "
            f"`StochasticWeightAveraging()`. Received: swa={swa!r}"
        )


def _is_model(target: Any) -> bool:
    holds = hasattr(target, "weights") or hasattr(target, "variables")
    return holds and not isinstance(target, type)


_BUILD_HINT = (
    "(An average restored from a checkpoint knows its variables after `apply` "
    "or `build`.)"
)


def _kept_and_swapped(
    swa: WeightAverage, target: Any
) -> tuple[list[Any], list[Any]]:
    """The variables to put back at the end, and those to swap."""
    if not _is_model(target):
        variables = _variables.checked_list(
            "target", target, wanted="a model or a list of variables"
        )
        _averages_of(swa, variables, "target")
        return variables, variables
    kept = _parts.weights(target)
    swapped = [v for v in kept if swa.average(v) is not None]
    if not swapped:
        raise ValueError(
            f"`target` must hold variables that {swa.name} averages. "
            f"Received: target={target!r} with {len(kept)} variables, none "
            f"of them averaged. {_BUILD_HINT}"
        )
    return kept, swapped


def _averages_of(
    swa: WeightAverage, variables: list[Any], argument: str = "var_list"
) -> list[tf.Variable]:
    averages = [swa.average(variable) for variable in variables]
    unknown = [v for v, average in zip(variables, averages) if average is None]
    if unknown:
        raise ValueError(
            f"`{argument}` must hold variables that {swa.name} averages. "
            f"Received in addition: {_variables.describe(unknown)}. "
            f"{_BUILD_HINT}"
        )
    return averages


def _assign_all(pairs: Iterable[tuple[Any, Any]]) -> Any:
    """target <- source"""
    return tf.group(
        *[
            _variables.write(
                target,
                tf.cast(_variables.read(source), target.dtype.base_dtype),
            )
            for target, source in pairs
        ]
    )
