"""Averages of independent workers, joined into one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Union

import numpy as np

from swa_tf.averaging import StochasticWeightAveraging
from swa_tf.checkpoints import paths, weighted_mean
from swa_tf.checkpoints.checkpoint import Tensor
from swa_tf.support import checks
from swa_tf.support import variables as variables_lib

_KIND = StochasticWeightAveraging.__name__
Worker = Union[StochasticWeightAveraging, str, "os.PathLike[str]"]


def merge_averages(
    target: StochasticWeightAveraging, others: Iterable[Worker]
) -> None:
    """Joins averages of independent workers, weighted by their counts.

        average  <- sum_i n_i * average_i / sum_i n_i
        n_models <- sum_i n_i

    over `target` and the `others`, in float64: the average of all their
    models. Workers that share no cluster train from one start with different
    data or seeds, and their averages are joined once, at the end.

    >>> weight = tf.Variable(0.0)
    >>> workers = [swa_tf.StochasticWeightAveraging() for _ in range(2)]
    >>> for worker, values in zip(workers, [(1.0, 2.0, 3.0), (10.0,)]):
    ...     for value in values:
    ...         _ = weight.assign(value)
    ...         worker.apply([weight])
    >>> merged = swa_tf.StochasticWeightAveraging()
    >>> merged.build([weight])
    >>> swa_tf.merge_averages(merged, workers)
    >>> float(merged.average(weight)), int(merged.n_models)
    (4.0, 4)

    Averages of other processes come as their checkpoints, without a model. A
    model with batch normalization needs `refit_data` in `averaged_weights`.

    Args:
        target: The average that becomes the joint one. It has its variables,
            by `apply` or `build`, and counts for its `n_models`, which may be
            none. Its count of calls stays.
        others: `StochasticWeightAveraging`s, and paths of checkpoints that a
            `tf.train.Checkpoint` with one of them wrote: averages of the same
            variables as `target`, in the same order and of the same shapes and
            dtypes. They stay as they are.

    Raises:
        RuntimeError: Outside eager mode, or if the averages of `target` or of
            one of `others` are swapped in.
        FileNotFoundError: If a checkpoint does not exist.
        TypeError, ValueError: If an argument is not as above; if one of
            `others` is named twice or has averaged nothing yet; if a checkpoint
            is damaged, holds no average or several, or was written inside
            `averaged_weights`. Nothing has changed then.

    References:
        Gupta, Serrano and DeCoste 2020, Stochastic Weight Averaging in
        Parallel, https://arxiv.org/abs/2001.02312, for equal counts.
    """
    checks.eager_mode("merge_averages")
    if not isinstance(target, StochasticWeightAveraging):
        wanted = "a `StochasticWeightAveraging`"
        raise checks.wrong("target", wanted, target, TypeError)
    live, files = _checked_others(target, others)
    averages = [_in_memory("target", target)]
    averages += [_in_memory("others", other) for other in live]
    averages += [_of_checkpoint(path) for path in files]
    for average in averages[1:]:
        _check_joins(average, averages[0])
    merged = _merged([a for a in averages if a.n_models > 0])
    n_models = sum(average.n_models for average in averages)
    variables = [*(average for _, average in target.averaged)]
    variables.append(target._n_models)  # of every replica
    with variables_lib.all_or_none(variables_lib.snapshot(variables)):
        for variable, value in zip(variables, [*merged, n_models]):
            variable.assign(value)


class _Average(NamedTuple):
    """An average, in memory or in a file."""

    name: str  # its own or the path
    n_models: int
    names: list[str]  # of the variables
    tensors: list[Tensor]
    values: Iterator[np.ndarray]


def _checked_others(
    target: Any, others: Any
) -> tuple[list[StochasticWeightAveraging], list[str]]:
    is_path = isinstance(others, (str, os.PathLike))
    if is_path or not isinstance(others, Iterable):
        wanted = "a list of averages and paths of checkpoints"
        raise checks.wrong("others", wanted, others, TypeError)
    others = list(others)
    files = [each for each in others if isinstance(each, (str, os.PathLike))]
    live = [each for each in others if not isinstance(each, (str, os.PathLike))]
    for i, other in enumerate(live):
        if not isinstance(other, StochasticWeightAveraging):
            raise TypeError(
                "`others` must be a list, each a `StochasticWeightAveraging` "
                f"or the path of a checkpoint. Received in it: {other!r}"
            )
        if other in [target, *live[:i]]:
            wanted = "name each average once, and not `target`"
            raise checks.must("others", wanted, f"{other.name} twice")
    if not others:
        raise checks.must("others", "hold at least one average", "others=[]")
    return live, paths.checked(files, "others") if files else []


def _in_memory(argument: str, swa: StochasticWeightAveraging) -> _Average:
    if swa.swapped:
        raise RuntimeError(
            f"The averages of {swa.name} are swapped in: leave "
            "`averaged_weights` before `merge_averages`."
        )
    if not swa.averaged:
        wanted = "have its variables: call `apply` or `build` first"
        raise checks.must(argument, wanted, f"{swa.name}, which has none yet")
    names = [name for name, _ in swa.averaged]
    averages = [variables_lib.components(v)[0] for _, v in swa.averaged]
    tensors = [
        Tensor(tuple(v.shape), np.dtype(v.dtype.as_numpy_dtype))
        for v in averages
    ]
    values = (average.numpy() for average in averages)
    return _Average(swa.name, int(swa.n_models), names, tensors, values)


def _of_checkpoint(path: str) -> _Average:
    checkpoint = weighted_mean.opened(path, "others")
    saved = checkpoint.saved_averages()
    # Others weigh their models otherwise, and do not merge.
    found = [average for average in saved if average.kind in (None, _KIND)]
    if len(found) != 1:
        raise checks.must(
            "others",
            f"be checkpoints of `tf.train.Checkpoint` that hold one {_KIND} "
            "each (of several, restore one and give that)",
            f"'{path}' with {len(found) or 'none'}",
        )
    (average,) = found
    if average.swapped:
        wanted = "checkpoints written outside `averaged_weights`"
        raise checks.wrong("others", wanted, path)
    with checkpoint.errors_named("its average cannot be read"):
        tensors = [checkpoint.tensors[key] for key in average.keys]
    values = (value for _, value in checkpoint.read(average.keys))
    return _Average(path, average.n_models, average.names, tensors, values)


def _check_joins(average: _Average, target: _Average) -> None:
    """Raises unless `average` has models, of the variables of `target`."""
    if average.n_models == 0:
        received = f"'{average.name}', which has averaged none"
        raise checks.must(
            "others", "have averaged at least one model", received
        )
    names, wanted = average.names, target.names
    reordered = names != wanted and sorted(names) == sorted(wanted)
    if reordered or average.tensors != target.tensors:
        raise ValueError(
            "`others` must be averages of the variables of `target`, in their "
            f"order: {_listed(target)}. "
            f"Received: '{average.name}' of {_listed(average)}"
        )


def _listed(average: _Average) -> str:
    pairs = zip(average.names, average.tensors)
    return ", ".join(f"'{name}' {tensor}" for name, tensor in pairs)


def _merged(averages: list[_Average]) -> list[np.ndarray]:
    """Returns the average of each variable, weighted by numbers of models."""
    counts = [each.n_models for each in averages]
    totals = list(itertools.accumulate(counts))
    merged = []
    for first, *others in zip(*(each.values for each in averages)):
        average = weighted_mean.Average(first)
        for value, n, total in zip(others, counts[1:], totals[1:]):
            average.update(value, n / total)
        merged.append(average.value())
    return merged
