"""The lists of variables that an average has updated in eager mode."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from swa_tf.averaging.update import Update

_MAX_UNTRACED_UPDATES = 50
_MAX_LISTS = 8


class KnownList:
    """A list given to `apply`, checked, and how its averages are updated.

    Attributes:
        given: What it holds, as the caller gave it.
        variables: The same as `tf.Variable`s.
        update: Of their averages.
    """

    def __init__(
        self,
        given: Sequence[Any],
        variables: list[Any],
        update: Update,
    ) -> None:
        self.given = list(given)
        self.variables = variables
        self.update = update
        self._traced: Callable[[], Any] | None = None

    @property
    def is_to_be_traced(self) -> bool:
        """Whether there are so many updates that to trace them pays."""
        return self.update.n_op_by_op >= _MAX_UNTRACED_UPDATES

    def traced(
        self, update: Callable[[list[Any], Update], Any]
    ) -> Callable[[], Any]:
        """`update(variables, update)` as a function, traced the first time."""
        if self._traced is None:

            @tf.function(autograph=False)
            def traced() -> None:
                update(self.variables, self.update)

            # A `tf.function` would warn of each new average that it traces.
            self._traced = traced.get_concrete_function()
        return self._traced


class Lists:
    """The last few lists, each known by the identities of what it holds.

    A copy of an average has none of the original's.
    """

    def __init__(self) -> None:
        self._known: collections.OrderedDict[tuple[int, ...], KnownList]
        self._known = collections.OrderedDict()

    def __deepcopy__(self, memo: Any) -> Lists:
        return Lists()

    def get(self, var_list: Sequence[Any]) -> KnownList | None:
        """The list that holds the same objects, if it is known."""
        key = tuple(map(id, var_list))
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def add(self, known: KnownList) -> None:
        """Keeps a list, whose objects thus keep their identities."""
        self._known[tuple(map(id, known.given))] = known
        if len(self._known) > _MAX_LISTS:
            self._known.popitem(last=False)
