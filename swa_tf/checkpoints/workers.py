"""Averages of independent workers, joined into one."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Union

import numpy as np
import tensorflow as tf

from swa_tf.averaging import StochasticWeightAveraging
from swa_tf.checkpoints import merge, paths
from swa_tf.checkpoints.checkpoint import Tensor
from swa_tf.checkpoints.tensorflow_format import TensorFlowCheckpoint
from swa_tf.support import variables as variables_lib

Worker = Union[StochasticWeightAveraging, str, "os.PathLike[str]"]


def merge_averages(
    target: StochasticWeightAveraging, others: Iterable[Worker]
) -> None:
    """Joins averages of independent workers, weighted by their counts.

        average  <- sum_i n_i * average_i / sum_i n_i
        n_models <- sum_i n_i

    over `target` and the `others`, in float64: what one average would be that
    had seen the models of all of them. Workers that share no cluster train by
    themselves, from one start with different data or seeds, each averages its
    own models, and the averages meet once, at the end: stochastic weight
    averaging in parallel.

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

    Averages of other processes come as their checkpoints, and no model needs
    to be made for them. A model with batch normalization must then have its
    statistics computed anew, as ever after averaging: give
    `averaged_weights` its `refit_data`.

    Args:
        target: The average that becomes the joint one. It has its variables,
            by `apply` or `build`, and counts for its `n_models`: for nothing
            if it has averaged none yet. Its count of calls stays.
        others: `StochasticWeightAveraging`s, and paths of checkpoints that a
            `tf.train.Checkpoint` with one of them wrote, mixed as they come.
            They are averages of the same variables as `target`, in the same
            order: of the same shapes, and float64 where they are float64
            there. They stay as they are.

    Raises:
        RuntimeError: Outside eager mode, or if the averages of `target` or of
            one of `others` are swapped in.
        FileNotFoundError: If a checkpoint does not exist.
        TypeError, ValueError: If `target` is no `StochasticWeightAveraging` or
            has no variables yet; if `others` is no list, is empty, names one
            twice or `target` itself; if one of them has averaged nothing yet
            or averages other variables; if a checkpoint is damaged, holds no
            average or several, or was written inside `averaged_weights`.
            Nothing has changed then.

    References:
        Gupta, Serrano and DeCoste 2020, Stochastic Weight Averaging in
        Parallel, https://arxiv.org/abs/2001.02312, which averages workers of
        equal counts.
    """
    if not tf.executing_eagerly():
        raise RuntimeError(
            "`merge_averages` works in eager mode only, and not in a graph or "
            "a `tf.function`."
        )
    _check_average("target", target)
    given = _checked_others(target, others)
    own = _live("target", target)
    averages = [own]
    for other in given:
        average = (
            _of_checkpoint(other)
            if isinstance(other, str)
            else _live("others", other)
        )
        _check_alike(average, own)
        averages.append(average)
    merged = _merged([a for a in averages if a.n_models > 0])
    n_models = sum(average.n_models for average in averages)
    variables = [*(average for _, average in target.averaged), target.n_models]
    restore = variables_lib.snapshot(variables)
    try:
        for variable, value in zip(variables, [*merged, n_models]):
            variable.assign(value)
    except BaseException:  # such as Ctrl-C
        restore()
        raise


class _Average(NamedTuple):
    """An average, live or in a checkpoint.

    Attributes:
        name: Its name in errors.
        n_models: The number of models averaged.
        names: The names of the variables averaged.
        tensors: The shape and type of the average of each.
        values: Yields the average of each.
    """

    name: str
    n_models: int
    names: list[str]
    tensors: list[Tensor]
    values: Iterator[np.ndarray]


def _check_average(argument: str, average: Any) -> None:
    if not isinstance(average, StochasticWeightAveraging):
        wanted, in_it = "a `StochasticWeightAveraging`", ""
        if argument == "others":
            wanted = f"a list, each {wanted} or the path of a checkpoint"
            in_it = " in it"
        raise TypeError(
            f"`{argument}` must be {wanted}. Received{in_it}: {average!r}"
        )


def _checked_others(target: Any, others: Any) -> list[Any]:
    """Returns the others as a list, with paths as strings."""
    if isinstance(others, (str, os.PathLike)) or (
        not isinstance(others, Iterable)
    ):
        raise TypeError(
            "`others` must be a list of averages and paths of checkpoints. "
            f"Received: others={others!r}"
        )
    given = list(others)
    if not given:
        raise ValueError(
            "`others` must hold at least one average. Received: others=[]"
        )
    is_path = [isinstance(other, (str, os.PathLike)) for other in given]
    live = [other for other, path in zip(given, is_path) if not path]
    for other in live:
        _check_average("others", other)
    twice = [a for i, a in enumerate(live) if a is target or a in live[:i]]
    if twice:
        raise ValueError(
            "`others` must name each average once, and not `target`. "
            f"Received twice: {twice[0].name}"
        )
    files = [other for other, path in zip(given, is_path) if path]
    return [*live, *(paths.checked(files, "others") if files else [])]


def _live(argument: str, swa: StochasticWeightAveraging) -> _Average:
    if swa.swapped:
        raise RuntimeError(
            f"The averages of {swa.name} are swapped in: leave "
            "`averaged_weights` before `merge_averages`."
        )
    n_models = int(swa.n_models)
    if not swa.averaged:
        raise ValueError(
            f"`{argument}` must have its variables: call `apply` or `build` "
            f"first. Received: {swa.name}, which has none yet"
        )
    if argument == "others" and n_models == 0:
        raise _nothing_averaged(swa.name)
    averages = [
        variables_lib.components(average)[0] for _, average in swa.averaged
    ]
    return _Average(
        swa.name,
        n_models,
        [name for name, _ in swa.averaged],
        [
            Tensor(tuple(v.shape), np.dtype(v.dtype.as_numpy_dtype))
            for v in averages
        ],
        (average.numpy() for average in averages),
    )


def _of_checkpoint(path: str) -> _Average:
    checkpoint = merge.opened(path, "others")
    found = getattr(checkpoint, "averages", [])
    if not isinstance(checkpoint, TensorFlowCheckpoint) or len(found) != 1:
        raise ValueError(
            "`others` must be checkpoints of `tf.train.Checkpoint` that hold "
            "one average each (of several, restore one and give that). "
            f"Received: '{path}' with {len(found) or 'none'}"
        )
    keys = found[0]
    with merge.errors_of(path, "others"):
        state = json.loads(checkpoint.string(keys.state))
        (n_models,) = checkpoint.read([keys.n_models])
    if state["swapped"]:
        raise ValueError(
            "`others` must be checkpoints written outside `averaged_weights`. "
            f"Received: '{path}'"
        )
    if n_models == 0:
        raise _nothing_averaged(path)
    return _Average(
        path,
        int(n_models),
        [name for name, _ in state["averaged"]],
        [checkpoint.tensors[key] for key in keys.averages],
        (v for _, v in merge.read(checkpoint, keys.averages, "others")),
    )


def _nothing_averaged(name: str) -> ValueError:
    return ValueError(
        "`others` must have averaged at least one model. "
        f"Received: '{name}', which has averaged none"
    )


def _check_alike(average: _Average, target: _Average) -> None:
    names, wanted = average.names, target.names
    reordered = names != wanted and sorted(names) == sorted(wanted)
    if reordered or average.tensors != target.tensors:
        raise ValueError(
            "`others` must be averages of the variables of `target`, in their "
            f"order: {_listed(target)}. "
            f"Received: '{average.name}' of {_listed(average)}"
        )


def _listed(average: _Average) -> str:
    return ", ".join(
        f"'{name}' {tensor.shape} {tensor.dtype}"
        for name, tensor in zip(average.names, average.tensors)
    )


def _merged(averages: list[_Average]) -> list[np.ndarray]:
    """Returns the joint average; the c of each is its share of the models."""
    totals = itertools.accumulate(each.n_models for each in averages)
    coefficients = [
        each.n_models / total for each, total in zip(averages, totals)
    ]
    merged = []
    for first, *others in zip(*(each.values for each in averages)):
        average = merge.Average(first)
        for value, c in zip(others, coefficients[1:]):
            average.update(value, c)
        merged.append(average.value())
    return merged
