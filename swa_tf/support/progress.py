"""A bar of progress in a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

_SECONDS = 1.0
"""For how long there is no bar: what ends sooner needs none."""


@contextlib.contextmanager
def bar(
    description: str, total: int | None, wanted: bool
) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each of `total` steps; None is unknown.

    On a terminal the bar is there while it moves. Elsewhere there is none.
    """
    if not wanted:
        yield lambda: None
        return
    # On first use, as it is not small.
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console()
    shown = Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
    )
    task = shown.add_task(description, total=total, visible=False)
    start = time.monotonic()

    def advance() -> None:
        visible = time.monotonic() - start >= _SECONDS
        shown.update(task, advance=1, visible=visible)

    # Elsewhere a bar would end in an empty line.
    with shown if console.is_interactive else contextlib.nullcontext():
        yield advance
