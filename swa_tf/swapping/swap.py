"""The trained values that averages have replaced for a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swa_tf.averaging import WeightAverage
from swa_tf.support import variables as variables_lib

_active: list[Swap] = []
"""The swaps that have begun and not ended, in the order they began."""


class Swap:
    """The values that variables had before the averages of `swa` came in.

    Swaps of the same variables may end in any order. One that ends before a
    later one hands its values on to it, so that the last to end restores what
    was there before the first began.
    """

    def __init__(self, swa: WeightAverage) -> None:
        self._swa = swa
        self._values: dict[Any, Any] = {}

    @property
    def is_active(self) -> bool:
        """Whether the swap has begun and not ended."""
        return self in _active

    def begin(self, variables: Iterable[Any]) -> None:
        """Keeps the present values of `variables`."""
        self._values = {
            component.ref(): value
            for component, value in variables_lib.held(variables)
        }
        _active.append(self)
        self._swa._mark_swapped(True)

    def keep(self) -> None:
        """Makes `end` leave the variables as they are."""
        self._values = {}

    def end(self) -> None:
        """Gives the values back; to be repeated if it is interrupted."""
        later = _active[_active.index(self) + 1 :]
        for ref, value in self._values.items():
            heir = next((swap for swap in later if ref in swap._values), None)
            if heir is None:
                variables_lib.write(ref.deref(), value)
            else:
                heir._values[ref] = value
        self._swa._mark_swapped(False)
        _active.remove(self)
