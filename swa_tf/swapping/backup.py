"""Swapping by hand: save, swap in, evaluate, restore."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import WeightAverage, check_average
from swa_tf.support import compat
from swa_tf.support import variables as variables_lib


class BackupVariables(variables_lib.BoundModule):
    """Copies of variables, to restore them later.

    With `assign_averages` this is the published recipe: save, swap in,
    evaluate, restore. It is for v1 graphs, where each step is an op to run in
    a session: in eager mode `averaged_weights` does all four.

    >>> variable = tf.Variable(1.0)
    >>> backup = swa_tf.BackupVariables([variable])
    >>> backup.save()
    >>> _ = variable.assign(5.0)
    >>> backup.restore()
    >>> float(variable)
    1.0

    Restoring is exact to the bit, in every component of a distributed
    variable. Before the first `save` the backup has the values that the
    variables had when it was made.

    Args:
        var_list: Variables of any dtype and shape, of Keras or plain.
        device: The device that keeps the backup, for example "/cpu:0" for a
            model that fills its accelerator. None: that of each variable.

    Raises:
        TypeError: If `var_list` is not a list of variables.
        ValueError: If it is empty, or if `device` is given inside
            `strategy.scope()`.
    """

    def __init__(
        self, var_list: Iterable[Any], device: str | None = None
    ) -> None:
        super().__init__()
        variables_lib.check_device(device)
        components = [
            component
            for variable in variables_lib.checked_list("var_list", var_list)
            for component in variables_lib.components(variable)
        ]
        self._originals = variables_lib.Untracked(components)
        with tf.init_scope():
            self._backups = [
                variables_lib.local_variable(
                    variables_lib.initial_value(component),
                    f"{compat.variable_name(component)}/backup",
                    device or component.device,
                )
                for component in components
            ]

    def save(self) -> Any:
        """Copies the variables into the backup; returns the op in a graph.

        >>> swa_tf.BackupVariables([tf.Variable(1.0)]).save()
        """
        return variables_lib.assign(zip(self._backups, self._originals.value))

    def restore(self) -> Any:
        """Copies the backup into the variables; returns the op in a graph.

        >>> swa_tf.BackupVariables([tf.Variable(1.0)]).restore()
        """
        return variables_lib.assign(zip(self._originals.value, self._backups))


def assign_averages(swa: WeightAverage, var_list: Iterable[Any]) -> Any:
    """Assigns to each variable its average, cast to the variable's dtype.

    This is the step between `BackupVariables.save` and
    `BackupVariables.restore`. Until the restore, do not call `apply` and do
    not write a checkpoint: nothing guards a swap by hand.

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
        RuntimeError: If a variable was not averaged yet. In a graph the op
            raises `tf.errors.InvalidArgumentError` instead.
    """
    check_average("swa", swa)
    variables = variables_lib.checked_list("var_list", var_list)
    averages = averages_of(swa, variables)
    with tf.control_dependencies(swa.assert_averaged(variables)):
        return variables_lib.assign(zip(variables, averages))


BUILD_HINT = (
    "(An average restored from a checkpoint knows its variables after `apply` "
    "or `build`.)"
)


def averages_of(
    swa: WeightAverage, variables: list[Any], argument: str = "var_list"
) -> list[tf.Variable]:
    """Returns the average of each variable; raises if one has none."""
    averages = [swa.average(variable) for variable in variables]
    unknown = [v for v, average in zip(variables, averages) if average is None]
    if unknown:
        raise ValueError(
            f"`{argument}` must hold variables that {swa.name} averages. "
            f"Received in addition: {variables_lib.describe(unknown)}. "
            f"{BUILD_HINT}"
        )
    return averages
