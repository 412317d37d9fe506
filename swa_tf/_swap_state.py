"""Whether `averaged_weights` has put averages in place of the weights."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from swa_tf import _variables


class SwapState(tf.train.experimental.PythonState):
    """Whether the averages stand in the model, for `apply` and checkpoints.

    The Python value serves eager mode and checkpoints, the variable serves
    functions that were traced before the swap.
    """

    def __init__(self) -> None:
        self.swapped = False
        self.variable: Any = None
        if _variables.outermost_graph() is None:
            self.variable = tf.Variable(False, trainable=False)

    def set(self, swapped: bool) -> None:
        self.swapped = swapped
        self.variable.assign(swapped)

    def check(self, name: str) -> None:
        """Raises if the averages of `name` are swapped in."""
        if self.swapped:
            raise RuntimeError(_MESSAGE.format(name=name))

    def assertions(self, name: str) -> list[tf.Operation]:
        """The same for a graph, when it runs."""
        if self.variable is None or tf.executing_eagerly():
            return []
        return [
            tf.debugging.assert_equal(
                self.variable, False, message=_MESSAGE.format(name=name)
            )
        ]

    def serialize(self) -> str:
        return "swapped" if self.swapped else "trained"

    def deserialize(self, string_value: bytes) -> None:
        if self.swapped:
            raise RuntimeError(
                "A checkpoint cannot be restored inside `averaged_weights`: "
                "its end would overwrite the weights restored. Leave it first."
            )
        if string_value == b"swapped":
            raise ValueError(
                "This checkpoint was written inside `averaged_weights`: its "
                "model holds the averages in place of the trained weights, "
                "and training cannot go on from it. To evaluate the averaged "
                "model, restore it alone, with "
                "`tf.train.Checkpoint(model=model)`."
            )


_MESSAGE = (
    "`apply` was called while the averages of {name} are swapped in: it would "
    "average the averages. Leave `averaged_weights` first."
)
