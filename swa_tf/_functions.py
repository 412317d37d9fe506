"""The functions by which an average updates itself in eager mode, kept."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

_MOST = 8
"""More lists of variables than that, and the one used least lately goes."""


class Functions:
    """Traced updates, one for each list of variables.

    A list is known by the identities of what it holds. A copy of an average
    has none of the original's.
    """

    def __init__(self) -> None:
        self._made: collections.OrderedDict[tuple[int, ...], Made]
        self._made = collections.OrderedDict()

    def __deepcopy__(self, memo: Any) -> Functions:
        return Functions()

    def of(self, var_list: Sequence[Any]) -> Made | None:
        """The functions made for a list, in no time a variable to speak of."""
        key = tuple(map(id, var_list))
        made = self._made.get(key)
        if made is not None:
            self._made.move_to_end(key)
        return made

    def make(
        self,
        var_list: Sequence[Any],
        update: Callable[[bool], Any],
        compiles: Callable[[bool], bool],
    ) -> Made:
        """Those for a new list.

        `update` is told whether to compile, which `compiles` says of what is
        wanted.
        """
        made = Made(var_list, update, compiles)
        self._made[tuple(map(id, var_list))] = made
        if len(self._made) > _MOST:
            self._made.popitem(last=False)
        return made


class Made:
    """The update of one list of variables, compiled and not."""

    def __init__(
        self,
        var_list: Sequence[Any],
        update: Callable[[bool], Any],
        compiles: Callable[[bool], bool],
    ) -> None:
        self._held = list(var_list)  # or another could have one of their ids
        self._update = update
        self._compiles = compiles
        self._traced: dict[bool, Callable[[], Any]] = {}

    def run(self, compiled: bool) -> None:
        """Updates, by XLA if that is wanted and can be."""
        compiled = self._compiles(compiled)
        if compiled not in self._traced:

            @tf.function(autograph=False)
            def update() -> None:
                self._update(compiled)

            # A `tf.function` would warn of each new average that it traces.
            self._traced[compiled] = update.get_concrete_function()
        self._traced[compiled]()
