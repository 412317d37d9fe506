"""The state of an average in checkpoints, beside its variables."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf.support import compat
from swa_tf.support import variables as variables_lib


class AveragedVariable(NamedTuple):
    """The name and shape of a variable, and the dtype of its average."""

    name: str
    shape: str
    dtype: str


class CheckpointState(tf.train.experimental.PythonState):
    """Whether the averages are swapped in, and of which variables they are.

    Restoring a checkpoint written inside `averaged_weights`, or one of other
    variables, raises. TensorFlow restores this object before any variable.

    `swapped` serves eager mode and checkpoints, `variable` serves functions
    that were traced before the swap. With `may_grow` variables may join later.
    A checkpoint must have been written with the same `layout`: what an average
    of the class `kind` was made with, and cannot change.
    """

    def __init__(
        self, may_grow: bool, kind: str, layout: dict[str, Any]
    ) -> None:
        self._may_grow = may_grow
        self._kind = kind
        self._layout = layout
        self.swapped = False
        self.variable: Any = None
        self.n_models: Any = None  # where it can be read: in eager mode
        if variables_lib.outermost_graph() is None:
            self.variable = tf.Variable(False, trainable=False)
        self._averaged: list[AveragedVariable] = []
        self.restored: list[AveragedVariable] = []
        self.was_restored = False

    def set(self, swapped: bool) -> None:
        """Notes whether the averages are swapped in."""
        self.swapped = swapped
        variables_lib.assign([(self.variable, tf.constant(swapped))])

    def check(self, name: str) -> None:
        """Raises if the averages of `name` are swapped in."""
        if self.swapped:
            raise RuntimeError(_SWAPPED.format(name=name))

    def assertions(self, name: str) -> list[tf.Operation]:
        """Returns ops that raise the same when a graph runs."""
        if self.variable is None:
            return []
        # Not `assert_equal`, whose many ops would be most of a small graph.
        is_live = tf.logical_not(self.variable)
        return [tf.debugging.Assert(is_live, [_SWAPPED.format(name=name)])]

    def live(self) -> tf.Tensor:
        """Returns 1, or 0 while the averages are swapped in, as int64."""
        if self.variable is None:
            return tf.ones([], tf.int64)
        return 1 - tf.cast(self.variable.read_value(), tf.int64)

    def note(self, variables: Iterable[Any]) -> None:
        """Notes all variables averaged; raises if a checkpoint has others."""
        name, dtype = compat.variable_name, variables_lib.dtype_of_average
        averaged = [
            AveragedVariable(name(v), str(v.shape), dtype(v).name)
            for v in variables
        ]
        if self.restored:
            self._check_same(averaged, self.restored)
            # By the names that they have here.
            self.restored[: len(averaged)] = averaged[: len(self.restored)]
        self._averaged = averaged

    def _check_same(
        self, averaged: list[AveragedVariable], restored: list[AveragedVariable]
    ) -> None:
        if self._may_grow and len(averaged) != len(restored):
            is_same = all(v == other for v, other in zip(averaged, restored))
        else:
            lists = averaged, restored
            names, others = ([v.name for v in each] for each in lists)
            reordered = names != others and sorted(names) == sorted(others)
            kinds, others_kinds = ([v[1:] for v in each] for each in lists)
            is_same = kinds == others_kinds and not reordered
        if not is_same:
            raise ValueError(
                "`var_list` must hold the variables that the checkpoint has "
                f"averages of, in their order: {_listed(restored)}. "
                f"Received: {_listed(averaged)}"
            )

    def serialize(self) -> str:
        self.check_none_waits("A checkpoint cannot be written", "A checkpoint")
        averaged = self._averaged or self.restored
        state = {
            "swapped": self.swapped,
            "averaged": [[each.name, each.shape] for each in averaged],
            "dtypes": [each.dtype for each in averaged],
            "kind": self._kind,
            "layout": self._layout,
        }
        return json.dumps(state)

    def check_none_waits(self, impossible: str, thing: str) -> None:
        """Raises if all averages restored wait for `build`; warns of some."""
        waiting = self.restored[len(self._averaged) :]
        if not waiting or self.n_models is None or self.n_models.numpy() == 0:
            return
        if not self._averaged:
            raise RuntimeError(
                f"{impossible} between the restore of an average and its "
                "first `apply` or `build`: the averages restored, which wait "
                "for their variables, would be missing. Call `build` first, "
                f"with the variables of {_listed(waiting)}."
            )
        warnings.warn(
            f"{thing} lacks the averages restored that still wait for their "
            f"variables: {_listed(waiting)}. Call `build` with these first, "
            "or they are lost.",
            stacklevel=2,
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
        layout = restored.get("layout", {})
        if layout != self._layout:
            raise ValueError(
                "A checkpoint must be restored into an average like the one "
                f"that it holds: {_described(restored.get('kind'), layout)}. "
                f"Received: {_described(self._kind, self._layout)}"
            )
        pairs = zip(restored["averaged"], restored["dtypes"])
        averaged = [AveragedVariable._make([*v, dtype]) for v, dtype in pairs]
        if self._averaged and averaged:
            self._check_same(self._averaged, averaged)
        self.restored = averaged
        self.was_restored = True


def _described(kind: str | None, layout: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in layout.items())
    return f"{kind or 'an average'}({given})"


def _listed(variables: list[AveragedVariable]) -> str:
    return ", ".join(f"'{v.name}' {v.shape} {v.dtype}" for v in variables)


_SWAPPED = (
    "`apply` was called while the averages of {name} are swapped in: it would "
    "average the averages. Leave `averaged_weights` first."
)
