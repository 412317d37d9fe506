"""What an average keeps in checkpoints beside its variables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from swa_tf import _compat, _variables


class State(tf.train.experimental.PythonState):
    """Whether the averages are swapped in, and of which variables they are.

    A checkpoint written inside `averaged_weights` holds averages in place of
    weights, and one of other variables would give each the average of another:
    to restore either raises. TensorFlow restores this before any variable.

    `swapped` serves eager mode and checkpoints, `variable` serves functions
    that were traced before the swap.
    """

    def __init__(self) -> None:
        self.swapped = False
        self.variable: Any = None
        self.n_models: Any = None  # where it can be read: in eager mode
        if _variables.outermost_graph() is None:
            self.variable = tf.Variable(False, trainable=False)
        self._averaged: list[Any] = []
        self._restored: list[Any] = []
        self._others_join = False

    @property
    def names(self) -> list[str]:
        """The names of the variables averaged, in their order."""
        return [name for name, _ in self._averaged]

    @property
    def n_restored(self) -> int:
        """The number of variables averaged in the checkpoint restored."""
        return len(self._restored)

    def set(self, swapped: bool) -> None:
        self.swapped = swapped
        for component in _variables.components(self.variable):
            _variables.write(component, tf.constant(swapped))

    def check(self, name: str) -> None:
        """Raises if the averages of `name` are swapped in."""
        if self.swapped:
            raise RuntimeError(_SWAPPED.format(name=name))

    def assertions(self, name: str) -> list[tf.Operation]:
        """The same for a graph, when it runs."""
        if self.variable is None or tf.executing_eagerly():
            return []
        return [
            tf.debugging.assert_equal(
                self.variable, False, message=_SWAPPED.format(name=name)
            )
        ]

    def live(self) -> tf.Tensor:
        """1, or 0 while the averages are swapped in, as int64.

        Where XLA compiles, which leaves assertions out, an update by nothing.
        """
        if self.variable is None:
            return tf.ones([], tf.int64)
        return 1 - tf.cast(self.variable.read_value(), tf.int64)

    def note(self, variables: Iterable[Any], others_join: bool = False) -> None:
        """Notes the variables averaged, unless a checkpoint has others.

        With `others_join` these, or those of the checkpoint, are the first of
        a list that grows.
        """
        averaged = [[_compat.variable_name(v), str(v.shape)] for v in variables]
        self._others_join = others_join
        self._check_same(averaged, self._restored)
        self._averaged = averaged

    def _check_same(self, averaged: list[Any], restored: list[Any]) -> None:
        if self._others_join:
            n = min(len(averaged), len(restored))
            averaged, restored = averaged[:n], restored[:n]
        _check_same(averaged, restored)

    def serialize(self) -> str:
        waiting = self._restored and not self._averaged
        if waiting and self.n_models is not None and self.n_models.numpy() > 0:
            raise RuntimeError(
                "A checkpoint cannot be written between the restore of an "
                "average and its first `apply` or `build`: the averages "
                "restored, which wait for their variables, would be missing. "
                "Call `build` first, with the variables of "
                f"{_listed(self._restored)}."
            )
        return json.dumps(
            {
                "swapped": self.swapped,
                "averaged": self._averaged or self._restored,
            }
        )

    def deserialize(self, string_value: bytes) -> None:
        if self.swapped:
            raise RuntimeError(
                "A checkpoint cannot be restored inside `averaged_weights`: "
                "its end would overwrite the weights restored. Leave it first."
            )
        restored = json.loads(string_value)
        if restored["swapped"]:
            raise ValueError(
                "This checkpoint was written inside `averaged_weights`: its "
                "model holds the averages in place of the trained weights, "
                "and training cannot go on from it. To evaluate the averaged "
                "model, restore it alone, with "
                "`tf.train.Checkpoint(model=model)`."
            )
        if self._averaged:
            self._check_same(self._averaged, restored["averaged"])
        self._restored = restored["averaged"]


def _check_same(averaged: list[Any], restored: list[Any]) -> None:
    """Raises unless the variables are those that were averaged."""
    if restored and not same(averaged, restored):
        raise ValueError(
            "`var_list` must hold the variables that the checkpoint has "
            f"averages of, in their order: {_listed(restored)}. "
            f"Received: {_listed(averaged)}"
        )


def same(averaged: list[Any], others: list[Any]) -> bool:
    """Whether variables, each by name and shape, are the same in one order.

    By shape, and by name where the names are the same in another order: those
    that Keras makes up may differ from process to process.
    """
    names, other_names = ([name for name, _ in v] for v in (averaged, others))
    reordered = names != other_names and sorted(names) == sorted(other_names)
    shapes, other_shapes = ([s for _, s in v] for v in (averaged, others))
    return not reordered and shapes == other_shapes


def _listed(variables: list[Any]) -> str:
    return ", ".join(f"'{name}' {shape}" for name, shape in variables)


_SWAPPED = (
    "`apply` was called while the averages of {name} are swapped in: it would "
    "average the averages. Leave `averaged_weights` first."
)
