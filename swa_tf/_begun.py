"""For each average of an EMA, whether its first model has come."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import tensorflow as tf

from swa_tf.support import variables as variables_lib


class Begun:
    """For each average whether it goes on, or begins as the weight itself.

    One boolean vector, in the order in which the variables joined. It grows
    as they do, and takes any number from a checkpoint; a scalar is for all
    averages. What it says nothing of has not begun.

    The EMA tracks `variable` for its checkpoints, and gives what it alone
    knows: how many averages it has, and how many models are in them.
    """

    def __init__(self, name: str, value: Any = False) -> None:
        self._name = name
        self.variable = tf.Variable(
            value,
            trainable=False,
            name=name,
            shape=tf.TensorShape(None),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Begun:
        """The copy, which is made before whatever else has the variable."""
        # TensorFlow's copy of a variable can no longer grow.
        strategy = variables_lib.strategy_of(self.variable)
        with strategy.scope() if strategy else contextlib.nullcontext():
            value = variables_lib.components(self.variable)[0].read_value()
            copied = Begun(self._name, value)
        memo[id(self)] = copied
        memo[id(self.variable)] = copied.variable
        return copied

    def of(
        self, indices: list[int], n_averages: int, n_models: tf.Tensor
    ) -> tf.Tensor:
        """Whether the averages at `indices` go on."""
        return tf.gather(self._read(n_averages, n_models), indices)

    def begin(
        self,
        indices: list[int],
        now: tf.Tensor,
        n_averages: int,
        n_models: tf.Tensor,
    ) -> Any:
        """Those at `indices` go on after this, if `now`, for all or each."""
        begun = self._read(n_averages, n_models)
        at = [[i] for i in indices]
        values = tf.gather_nd(begun, at) | now
        begun = tf.tensor_scatter_nd_update(begun, at, values)
        return self.variable.assign(begun)

    def join(
        self, joined: list[bool], n_before: int, n_models: tf.Tensor
    ) -> None:
        """Adds whether `joined` go on to the `n_before` that are known."""
        # A checkpoint has more of averages that waited when it was written.
        known = self._read(n_before, n_models)[:n_before]
        begun = [*known.numpy(), *joined]
        if self.variable.read_value().shape != [len(begun)]:
            self.variable.assign(begun)

    def reset(self) -> Any:
        """None goes on."""
        return self.variable.assign(tf.zeros_like(self.variable))

    def _read(self, n: int, n_models: tf.Tensor) -> tf.Tensor:
        """A vector, of `n` elements at least.

        A checkpoint with a scalar is from before the first `apply`, or of a
        version that had no other: there all had begun when there were models.
        """
        handle = variables_lib.components(self.variable)[0].handle
        return _flags(handle, tf.constant(n), n_models)


# A function of its own, not inlined: where TensorFlow sees that a vector is
# written, it takes for granted that one is read, whatever was restored.
@functools.partial(
    tf.function,
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _flags(handle: Any, n: tf.Tensor, n_models: tf.Tensor) -> tf.Tensor:
    begun = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.bool)
    given = tf.reshape(begun, [-1])
    is_scalar = tf.equal(tf.rank(begun), 0)
    of_all = is_scalar & (tf.reduce_any(given) | (n_models > 0))
    size = tf.where(is_scalar, 0, tf.size(given))
    rest = tf.fill([tf.maximum(n - size, 0)], of_all)
    return tf.concat([given[:size], rest], axis=0)
