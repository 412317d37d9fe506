"""Tables of times, on the console and as Markdown, with JSON and a chart."""

from __future__ import annotations

import io
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from absl import flags
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Column, Table

from benchmarks import report, timing
from benchmarks.errors import BenchmarkError


class Sheet(NamedTuple):
    """A table with a title above it and a note below."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def main(run: Callable[..., Any], argv: Sequence[str]) -> None:
    """Runs a script whose arguments are flags; tells mistakes in them."""
    try:
        if len(argv) > 1:
            raise BenchmarkError(
                f"There are flags only. Received: {' '.join(argv[1:])}"
            )
        run(flags.FLAGS.flag_values_dict(), sys.argv[1:])
    except BenchmarkError as error:
        sys.exit(f"error: {error}")


def milliseconds(seconds: float) -> str:
    """Three digits of a time, in ms.

    >>> milliseconds(0.0123456), milliseconds(1.5)
    ('12.3', '1500')
    """
    return digits(1e3 * seconds)


def digits(value: float) -> str:
    """A number with three digits, and all those before the point.

    >>> digits(0.12345), digits(99.96), digits(12345.6)
    ('0.123', '100', '12346')
    """
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    places = 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 else 3
    return f"{value:.{places}f}"


def spread(times: Sequence[float]) -> list[str]:
    """Two cells, in ms: the median, and between which the middle half lies."""
    median, low, high = map(milliseconds, timing.summary(times))
    return [median, f"{low} to {high}"]


def setting() -> dict[str, Any]:
    """With what and on what the figures were measured."""
    return {
        "stack": report.stack(),
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
    }


def command(module: str, arguments: Sequence[str]) -> str:
    """What prints the same tables again."""
    return shlex.join(["python", "-m", f"benchmarks.{module}", *arguments])


def show(sheets: Sequence[Sheet]) -> None:
    """Prints the tables."""
    console = Console(width=max(100, Console().width))
    for sheet in sheets:
        table = _table(sheet, title=sheet.title, caption=sheet.note)
        table.title_justify = table.caption_justify = "left"
        console.print(table)


def write(
    directory: str,
    title: str,
    sheets: Sequence[Sheet],
    contents: Mapping[str, Any],
    draw: Callable[[Figure], None],
) -> None:
    """Writes `results.md`, `chart.png` and `results.json`.

    Args:
        directory: Where; it is made if need be.
        title: Of the page.
        sheets: Its tables.
        contents: All figures, with the `command` and the `setting`.
        draw: What draws the chart.
    """
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/results.md", "w", encoding="utf-8") as file:
        file.write(markdown(title, sheets, contents))
    with matplotlib.rc_context({"figure.dpi": 120}):
        figure = Figure(figsize=(8.0, 5.0), layout="constrained")
        draw(figure)
        figure.savefig(f"{directory}/chart.png")
    with open(f"{directory}/results.json", "w", encoding="utf-8") as file:
        json.dump(contents, file, indent=1)


def markdown(
    title: str, sheets: Sequence[Sheet], contents: Mapping[str, Any]
) -> str:
    """The page: tables, the command that made them, and with what."""
    buffer = io.StringIO()
    for sheet in sheets:
        buffer.write(f"\n## {sheet.title}\n")
        Console(file=buffer, width=200).print(_table(sheet, box=box.MARKDOWN))
        buffer.write(f"{sheet.note}\n" if sheet.note else "")
    lines = [line.rstrip() for line in buffer.getvalue().split("\n")]
    made = contents["setting"]
    versions = ", ".join(f"{k} {v}" for k, v in made["stack"].items())
    return (
        f"# {title}\n" + "\n".join(lines) + f"\nMade by\n\n"
        f"    {contents['command']}\n\n"
        f"with {versions}, on {made['cpus']} cores, {made['architecture']}.\n"
    )


def _table(sheet: Sheet, **kwargs: Any) -> Table:
    first, *others = sheet.headings
    columns = [Column(heading, justify="right") for heading in others]
    table = Table(Column(first), *columns, **kwargs)
    for row in sheet.rows:
        table.add_row(*row)
    return table
