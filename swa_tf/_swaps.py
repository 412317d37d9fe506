"""The values that averages have taken the place of, until they are put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swa_tf import _variables

_in: list[Swap] = []
"""Those that have begun and have not ended, in the order they began."""


class Swap:
    """What variables held before a swap.

    Swaps of the same variables may end in another order than that in which
    they began. One that ends hands its values to the next that began after it,
    so that whichever is the last puts back what was there before the first.
    """

    def __init__(self) -> None:
        self._held: dict[Any, Any] = {}

    @property
    def is_in(self) -> bool:
        """Whether it has begun and has not ended."""
        return self in _in

    def begin(self, variables: Iterable[Any]) -> None:
        """Holds the values that `variables` have now."""
        self._held = {
            component.ref(): value
            for component, value in _variables.held(variables)
        }
        _in.append(self)

    def keep(self) -> None:
        """Leaves the variables as they are."""
        self._held = {}

    def put_back(self) -> None:
        """Gives the variables their values; to do it again changes nothing."""
        later = _in[_in.index(self) + 1 :]
        for key, value in self._held.items():
            heir = next((swap for swap in later if key in swap._held), None)
            if heir is None:
                _variables.write(key.deref(), value)
            else:
                heir._held[key] = value

    def end(self) -> None:
        """The last of it: no interrupt leaves it half done."""
        _in.remove(self)
