"""A bar of progress in a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

_SECONDS = 1.0
"""For how long there is no bar: what ends sooner needs none."""


@contextlib.contextmanager
def bar(
    description: str, wanted: bool, console: Any = None
) -> Iterator[Callable[[int, int | None], None]]:
    """Gives a function to call with what is done, and all; None is unknown.

    On a terminal the bar is there while it moves. Elsewhere there is none.
    """
    if not wanted:
        yield lambda done, total: None
        return
    # On first use, as it is not small.
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = console or Console()
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    shown = Progress(*columns, console=console, transient=True)
    task = shown.add_task(description, total=None, visible=False)
    start = time.monotonic()

    def show(done: int, total: int | None) -> None:
        visible = time.monotonic() - start >= _SECONDS
        shown.update(task, completed=done, total=total, visible=visible)

    # Elsewhere a bar would end in an empty line.
    with shown if console.is_interactive else contextlib.nullcontext():
        yield show
