"""Tables of times, on the console and as Markdown, with JSON and a chart."""

from __future__ import annotations

import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Column, Table

from benchmarks.common import command_line, provenance, timing


class Sheet(NamedTuple):
    """A table with a title above it and a note below."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def milliseconds(seconds: float) -> str:
    """Returns three digits of a time, in ms.

    >>> milliseconds(0.0123456), milliseconds(1.5)
    ('12.3', '1500')
    """
    return digits(1e3 * seconds)


def digits(value: float) -> str:
    """Returns a number with three digits, and all before the point.

    >>> digits(0.12345), digits(99.96), digits(12345.6)
    ('0.123', '100', '12346')
    """
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    places = 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 else 3
    return f"{value:.{places}f}"


def spread(times: Sequence[float]) -> list[str]:
    """Returns two cells, in ms: the median, and the quartiles."""
    median, low, high = map(milliseconds, timing.summary(times))
    return [median, f"{low} to {high}"]


def publish(
    contents: dict[str, Any],
    directory: str,
    title: str,
    sheets: Sequence[Sheet],
    draw: Callable[[Figure], None],
    command: tuple[str, Sequence[str]],
) -> None:
    """Prints the tables, and writes them with a chart and all figures.

    Args:
        contents: All figures. It gets the `command` and the `setting`.
        directory: Where to write `results.md`, `chart.png` and `results.json`;
            it is made if need be.
        title: Of the page.
        sheets: Its tables.
        draw: What draws the chart.
        command: The module of `benchmarks`, and the arguments of its command
            line.
    """
    contents["command"] = command_line.command(*command)
    contents["setting"] = {
        "stack": provenance.stack(),
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
    }
    console = Console(width=max(100, Console().width))
    for sheet in sheets:
        table = _table(sheet, title=sheet.title, caption=sheet.note)
        table.title_justify = table.caption_justify = "left"
        console.print(table)
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/results.md", "w", encoding="utf-8") as file:
        file.write(markdown(title, sheets, contents))
    with matplotlib.rc_context({"figure.dpi": 120}):
        figure = Figure(figsize=(8.0, 5.0), layout="constrained")
        draw(figure)
        figure.savefig(f"{directory}/chart.png")
    with open(f"{directory}/results.json", "w", encoding="utf-8") as file:
        json.dump(contents, file, indent=1)
    print(f"The reports are in {directory}/")


def markdown(
    title: str, sheets: Sequence[Sheet], contents: Mapping[str, Any]
) -> str:
    """Returns the page of some figures.

    Args:
        title: Of the page.
        sheets: Its tables.
        contents: The figures, with the `command` and the `setting` that made
            them.
    """
    buffer = io.StringIO()
    for sheet in sheets:
        buffer.write(f"\n## {sheet.title}\n")
        Console(file=buffer, width=200).print(_table(sheet, box=box.MARKDOWN))
        buffer.write(f"{sheet.note}\n" if sheet.note else "")
    lines = [line.rstrip() for line in buffer.getvalue().split("\n")]
    made = contents["setting"]
    made_by = provenance.made_by(
        contents["command"],
        made["stack"],
        f"on {made['cpus']} cores, {made['architecture']}",
    )
    return f"# {title}\n" + "\n".join(lines) + f"\n{made_by}"


def _table(sheet: Sheet, **kwargs: Any) -> Table:
    first, *others = sheet.headings
    columns = [Column(heading, justify="right") for heading in others]
    table = Table(Column(first), *columns, **kwargs)
    for row in sheet.rows:
        table.add_row(*row)
    return table
