"""The updates of the lists of variables that `apply` was given last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from swa_tf.averaging.update import Update

_MAX_LISTS = 8


@dataclasses.dataclass
class CachedUpdate:
    """A list given to `apply`, its `tf.Variable`s, and their update."""

    given: list[Any]
    variables: list[Any]
    update: Update
    n_op_by_op: int = 0  # how often it ran op by op
    traced: Callable[[], Any] | None = None


class UpdateCache:
    """The updates used last, by the identities of their variables."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], CachedUpdate] = {}

    def __deepcopy__(self, memo: Any) -> UpdateCache:
        return UpdateCache()  # of the variables of the copy

    def get(self, given: Sequence[Any]) -> CachedUpdate | None:
        """Returns the list of the same variables, or None."""
        key = tuple(map(id, given))
        if key in self._known:
            self._known[key] = self._known.pop(key)  # now the latest
        return self._known.get(key)

    def add(self, known: CachedUpdate) -> None:
        """Adds a list, which keeps its variables and so their identities."""
        self._known[tuple(map(id, known.given))] = known
        if len(self._known) > _MAX_LISTS:
            del self._known[next(iter(self._known))]
