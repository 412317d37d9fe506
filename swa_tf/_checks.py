"""Checks of arguments, with errors that say what was wanted and what came."""

from __future__ import annotations

import math
import numbers
from typing import Any


def integer(name: str, value: Any, at_least: int) -> int:
    """`value` as an int, or an error that calls it `name`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and value >= at_least):
        raise ValueError(
            f"`{name}` must be an integer >= {at_least}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def real(name: str, value: Any) -> float:
    """`value`, a finite number >= 0, as a float; an int stays one."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_real and 0 <= float(value) < math.inf):
        raise ValueError(
            f"`{name}` must be a finite number >= 0. Received: {name}={value!r}"
        )
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        quoted = ", ".join(f'"{each}"' for each in choices)
        raise ValueError(
            f"`{name}` must be one of {quoted}. Received: {name}={value!r}"
        )
