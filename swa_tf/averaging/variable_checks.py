"""Checks of the `var_list` given to `apply` and `build` of an average."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from swa_tf.support import checks
from swa_tf.support import variables as variables_lib

_FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
_SAME_SHAPE = "shape_in_var_list_must_not_change"
_NO_MEAN = (tf.VariableAggregation.NONE, tf.VariableAggregation.SUM)


def require_coordinator() -> None:
    """Raises in a function that workers of parameter servers run."""
    if not tf.executing_eagerly() and isinstance(
        tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy
    ):
        raise RuntimeError(
            "`apply` must be called by the coordinator, and not in a function "
            "that it schedules: workers would average at the same time, and "
            "some of them twice. Call it after `coordinator.join()`, in eager "
            "mode or outside `strategy.scope()`."
        )


def require_v1_graph(argument: str) -> None:
    """Raises where there is no collection to take for `argument`=None."""
    if variables_lib.outermost_graph() is None:
        wanted = "given outside v1 graphs, where it has no default"
        raise checks.wrong(argument, wanted, None)


def check_strategies(
    variables: list[Any], averages: list[Any], n_models: Any, name: str
) -> None:
    """Raises in the scope of a strategy if variables are of another."""
    if not tf.distribute.has_strategy():
        return
    here = (None, tf.distribute.get_strategy())
    others = [v for v in variables if variables_lib.strategy_of(v) not in here]
    known = all(average is not None for average in averages)
    if others and not (known and tf.executing_eagerly()):
        wanted = "no variables of another strategy than that of the scope"
        raise variables_lib.wrong(f"{wanted}: call `apply` outside", others)
    if variables_lib.strategy_of(n_models) not in here:
        raise ValueError(
            "`apply` must not be called in the scope of another strategy "
            f"than that in which {name} was made: make it outside of "
            f"either. Received: {variables_lib.describe(variables)}"
        )


def check_each(
    variables: list[Any], device: str | None, argument: str = "var_list"
) -> None:
    """Raises unless each can be averaged, on `device`, and comes once."""
    seen = set()
    for variable in variables:
        strategy = variables_lib.strategy_of(variable)
        if variable.dtype.base_dtype not in _FLOATS:
            wanted = "variables of dtype float16, bfloat16, float32 or float64"
            raise variables_lib.wrong(wanted, [variable], TypeError, argument)
        differs = strategy and variables_lib.is_read_by_replica(variable)
        if differs and variable.aggregation in _NO_MEAN:
            wanted = "variables of one number for all replicas, not their sum"
            raise variables_lib.wrong(wanted, [variable], argument=argument)
        if device and strategy:
            placed = variables_lib.describe([variable])
            wanted = f"None for variables of a strategy, as {placed}"
            raise checks.wrong("device", wanted, device)
        if variable.ref() in seen:
            wanted = "variables once, not twice"
            raise variables_lib.wrong(wanted, [variable], argument=argument)
        seen.add(variable.ref())


def check_graph(variables: list[Any], first: tf.Graph | None) -> None:
    """Raises unless this is the graph of the first `apply`."""
    if variables_lib.outermost_graph() is not first:
        wanted = "variables of the mode and graph of the first `apply`"
        raise variables_lib.wrong(wanted, variables)


def check_same(variables: list[Any], averaged: list[Any]) -> None:
    """Raises unless they are, in any order, those of the first `apply`."""
    given, known = ({v.ref() for v in vs} for vs in (variables, averaged))
    late = [v for v in variables if v.ref() not in known]
    missing = [v for v in averaged if v.ref() not in given]
    if late or missing:
        differs = "in addition" if late else "a list without"
        raise ValueError(
            "`var_list` must hold the variables of the first `apply`, all of "
            "them and no others: make an average for each model. "
            f"Received {differs}: {variables_lib.describe(late or missing)}"
        )


def check_shapes(variables: list[Any], averages: list[Any]) -> None:
    """Raises if a shape that is known now differs from that averaged."""
    for variable, average in zip(variables, averages):
        if average is None:
            continue  # of a variable that joins
        shape = variable.shape
        if tf.executing_eagerly() and not shape.is_fully_defined():
            shape = variable.read_value().shape
        if not average.shape.is_compatible_with(shape):
            wanted = f"variables whose shapes stay, {average.shape} not {shape}"
            raise variables_lib.wrong(wanted, [variable])


def ready(pairs: list[tuple[Any, tf.Variable]]) -> list[Any]:
    """Returns tensors of a graph that are there when all weights are.

    Given weights with their averages. Where a step fails, as after the last
    batch, an update that waits for them neither averages nor counts: a
    `tf.function` reads a variable after what assigns it. (In a v1 graph the
    caller orders them.) Checks unknown shapes.
    """
    in_v1 = variables_lib.outermost_graph() is not None
    tensors = []
    for variable, average in pairs:
        if not isinstance(variable, tf.Variable):
            tensors.append(variable)
        elif not variable.shape.is_fully_defined():
            # Not `assert_equal(tf.shape(variable), ...)`: TensorFlow takes that
            # for a constant, from the branches of the `tf.cond` that follows.
            value, shape = variable.read_value(), average.shape
            tensors.append(tf.ensure_shape(value, shape, name=_SAME_SHAPE))
        elif not in_v1:
            parts = variables_lib.components(variable)
            tensors += [part.read_value() for part in parts]
    return tensors
