"""A `with` block in which a model has its averages; a swap copies nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from swa_tf.averaging import ONE_AT_A_TIME, WeightAverage, check_average
from swa_tf.batch_norm import ArgumentNames, BatchNormRefit
from swa_tf.support import checks, compat, model_parts
from swa_tf.support import variables as variables_lib
from swa_tf.swapping import backup


def averaged_weights(
    swa: WeightAverage,
    target: Any,
    *,
    refit_data: Iterable[Any] | None = None,
    refit_steps: int | None = None,
    refit: BatchNormRefit | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    keep: bool = False,
) -> contextlib.AbstractContextManager[None]:
    """Evaluates, saves or serves the averaged model inside a `with` block.

    The block begins with the averages in place of the trained weights. When it
    ends, also by an exception, the trained weights are back bit for bit, and
    so is everything else among the weights of a model. Inside the block
    `model.save(...)` writes the averaged model. Blocks of several averages may
    end in any order: the last restores what was there before the first began.

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
    model that has such layers.

    Args:
        swa: The averages, updated at least once.
        target: A model or layer (anything with `weights` or `variables`): its
            variables that `swa` averages are swapped. Or a list of variables,
            all of which `swa` must average.
        refit_data: Batches for `refit_batch_norm`; `target` must be a model.
        refit_steps: The `steps` of `refit_batch_norm`.
        refit: A `BatchNormRefit` of `target`, to be called with them. Given
            the same one each time, the model is traced once. None makes one.
        preprocess: As in `BatchNormRefit`, for the one that is made.
        keep: Whether the averages stay when the block ends without an
            exception: for the end of the training.

    Raises:
        RuntimeError: On entry, if a variable to swap was not averaged yet, if
            the averages of `swa` are swapped in already, or in a graph or
            `tf.function`: use `BackupVariables` and `assign_averages` there.
        TypeError, ValueError: If an argument is none of the above, does not go
            with another, or as `refit_batch_norm` does; and if `swa` averages
            no variable of `target`.
    """
    return swapped_in(
        backup.assign_averages,
        swa,
        target,
        refit_data=refit_data,
        refit_steps=refit_steps,
        refit=refit,
        preprocess=preprocess,
        keep=keep,
    )


@contextlib.contextmanager
def swapped_in(
    assign: Callable[[Any, list[Any]], Any],
    swa: WeightAverage,
    target: Any,
    *,
    refit_data: Iterable[Any] | None,
    refit_steps: int | None,
    refit: BatchNormRefit | None,
    preprocess: Callable[[Any], Any] | None,
    keep: bool = False,
    function: str = "averaged_weights",
) -> Iterator[None]:
    """Runs a block of `function`, in which `assign` gives the weights.

    It is called with `swa` and the variables of `target` that `swa` averages.
    """
    instead = "elsewhere use the ops of `BackupVariables` and `assign_averages`"
    checks.eager_mode(function, instead)
    check_average("swa", swa)
    compat.check_keras("target", target)
    keep = checks.boolean("keep", keep)
    if refit_data is not None:
        refit = _checked_refit(refit, target, preprocess)
    elif any(x is not None for x in (refit_steps, refit, preprocess)):
        raise ValueError(
            "`refit_data` must be given with `refit_steps`, `refit` or "
            f"`preprocess`. Received: {refit_steps=}, {refit=}, {preprocess=}"
        )
    swap = _Swap(swa)
    try:
        try:
            _swap_in(assign, swa, target, swap)
            if refit is not None and refit_data is not None:
                # Warnings name the caller, beyond `contextlib`.
                names = ArgumentNames("target", "refit_data", "refit_steps", 4)
                refit._run(refit_data, refit_steps, names)
            yield
            if keep:
                swap.keep()
        finally:
            _end(swap)
    finally:  # an interrupt may come before the inner one does anything
        _end(swap)


def _checked_refit(refit: Any, target: Any, preprocess: Any) -> BatchNormRefit:
    if not _is_model(target):
        wanted = "a model for `refit_data` to be of use"
        raise checks.wrong("target", wanted, target, TypeError)
    if refit is None:
        return BatchNormRefit(target, preprocess=preprocess)
    if not isinstance(refit, BatchNormRefit):
        wanted = "a `BatchNormRefit` or None"
        raise checks.wrong("refit", wanted, refit, TypeError)
    if refit.model is not target or preprocess is not None:
        raise ValueError(
            "`refit` must be of the model `target`, and made with what is to "
            f"`preprocess`. Received: a refit of {refit.model!r}, {preprocess=}"
        )
    return refit


def _swap_in(
    assign: Callable[[Any, list[Any]], Any],
    swa: WeightAverage,
    target: Any,
    swap: _Swap,
) -> None:
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
        assign(swa, swapped)


def _end(swap: _Swap) -> None:
    """Ends the swap if it has begun, however often it is interrupted."""
    interrupt = None
    while swap in _active:
        try:
            with ONE_AT_A_TIME:
                swap.end()
        except (KeyboardInterrupt, SystemExit) as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _is_model(target: Any) -> bool:
    holds = hasattr(target, "weights") or hasattr(target, "variables")
    return holds and not isinstance(target, type)


_active: list[_Swap] = []
"""The swaps that have begun and not ended, in the order they began."""


class _Swap:
    """The values before a swap; a later swap may take them over."""

    def __init__(self, swa: WeightAverage) -> None:
        self._swa = swa
        self._values: dict[Any, Any] = {}

    def begin(self, variables: Iterable[Any]) -> None:
        """Keeps the present values of `variables`."""
        self._values = {
            component.ref(): value
            for component, value in variables_lib.held(variables)
        }
        _active.append(self)
        self._swa._mark_swapped(True)

    def keep(self) -> None:
        """Makes `end` leave the variables as they are."""
        self._values = {}

    def end(self) -> None:
        """Gives the values back; to be repeated if it is interrupted."""
        later = _active[_active.index(self) + 1 :]
        for ref, value in self._values.items():
            heir = next((swap for swap in later if ref in swap._values), None)
            if heir is None:
                variables_lib.write(ref.deref(), value)
            else:
                heir._values[ref] = value
        self._swa._mark_swapped(False)
        _active.remove(self)


def _kept_and_swapped(
    swa: WeightAverage, target: Any
) -> tuple[list[Any], list[Any]]:
    """Returns the variables to restore at the end, and those to swap."""
    if not _is_model(target):
        variables = variables_lib.checked_list(
            "target", target, wanted="a model or a list of variables"
        )
        backup.averages_of(swa, variables, "target")
        return variables, variables
    kept = model_parts.weights(target)
    swapped = [v for v in kept if swa.average(v) is not None]
    if not swapped:
        raise ValueError(
            f"`target` must hold variables that {swa.name} averages. "
            f"Received: target={target!r} with {len(kept)} variables, none "
            f"of them averaged. {backup.BUILD_HINT}"
        )
    return kept, swapped
