"""Figures in the docs that are held to files of results, by marks.

A mark is a pair of comments, which a reader of the page does not see. Between
them stands what `python -m benchmarks.table --norun --docs` puts there. A table
is a section of a page of results, or without its name the whole page:

    <!-- figures: benchmarks/results/table/small/table.md, Differences -->
    <!-- end -->

`table` in place of `figures` takes of a section its tables alone, without the
notes below them.

A number in a sentence or a cell is a value of a JSON file, by the keys that
lead to it, with a format of Python. The mark stands on one line, which does not
begin with `<!--`: both would end the paragraph.

    gains <!-- figure: results/table.json sgd/mean +.2f -->+1.00<!-- end -->
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError

_MARK = re.compile(
    r"(<!-- (figures?|table):\s+(.+?)\s+-->)(.*?)(<!-- end\s+-->)", re.S
)
_BEGIN = re.compile(r"<!-- (?:figures?|table):")


def pages(root: str) -> Iterator[str]:
    """Yields the paths of the pages that may have marks."""
    yield os.path.join(root, "README.md")
    docs = os.path.join(glob.escape(root), "docs", "**", "*.md")
    yield from sorted(glob.glob(docs, recursive=True))


def renew(root: str) -> None:
    """Puts every marked figure of the docs at what the results say.

    Args:
        root: The folder of the project.

    Raises:
        BenchmarkError: As `renewed` does.
    """
    for path in pages(root):
        before = files.read_text(path)
        try:
            after = renewed(before, root)
        except BenchmarkError as error:
            raise BenchmarkError(f"{path}: {error}") from error
        if after != before:
            files.write_text(path, after)
            print(f"Renewed the figures of {path}")


def renewed(text: str, root: str) -> str:
    """Returns the text of a page with every marked figure as results have it.

    Args:
        text: Of the page.
        root: The folder that the paths in marks start from.

    Raises:
        BenchmarkError: If a mark has no end, or names what is not there.
    """

    def replaced(match: re.Match[str]) -> str:
        begin, kind, what, _, end = match.groups()
        what = " ".join(what.split())
        if kind != "figure":
            section = _section(what, root)
            if kind == "table":
                rows = section.splitlines()
                section = "\n".join(row for row in rows if row[:1] == "|")
            return f"{begin}\n\n{section}\n\n{end}"
        return f"{begin}{_number(what, root)}{end}"

    begun, ended = len(_BEGIN.findall(text)), len(_MARK.findall(text))
    if begun != ended:
        raise BenchmarkError(
            "Each mark must be <!-- figure: ... --> or <!-- figures: ... -->, "
            f"and end with <!-- end -->. Received: {begun} that begin and "
            f"{ended} that end"
        )
    return _MARK.sub(replaced, text)


def _section(what: str, root: str) -> str:
    path, _, heading = what.partition(", ")
    page = files.read_text(os.path.join(root, path))
    if not heading:
        return page.strip()
    sections = re.split(r"^#+ +(.+)\n", page, flags=re.M)
    found = dict(zip(sections[1::2], sections[2::2]))
    if heading not in found:
        raise BenchmarkError(
            f"A mark must name a section of {path}, one of "
            f"{'; '.join(found)}. Received: {heading}"
        )
    return found[heading].strip()


def _number(what: str, root: str) -> str:
    try:
        path, keys, digits = what.split()
    except ValueError as error:
        raise BenchmarkError(
            "A mark must name a file, the keys to a value in it and a format, "
            f"apart by spaces. Received: {what}"
        ) from error
    value = files.read_json(os.path.join(root, path))
    for key in keys.split("/"):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (LookupError, TypeError, ValueError) as error:
            raise BenchmarkError(
                f"A mark must name keys that are in {path}. Received: {keys}"
            ) from error
    return format(value, digits)
