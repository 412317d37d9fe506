"""Text and JSON files: read with an error in words, written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from benchmarks.common.errors import BenchmarkError


def read_text(path: str) -> str:
    """Returns the text of a file.

    Raises:
        BenchmarkError: If it is missing.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error


def read_json(path: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        BenchmarkError: If it is missing or damaged.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error


def as_json(value: Any) -> str:
    """Returns the text of a JSON file; NaN and infinity are errors."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_whole(path: str, make: Callable[[str], None]) -> None:
    """Makes a file under another name, and renames it when complete.

    Args:
        path: Its name in the end. Directories on the way are made.
        make: Makes the file, under the path that it is given.

    Raises:
        BenchmarkError: If the file cannot be written.
    """
    directory, name = os.path.split(path)
    partial = os.path.join(directory, f".partial-{name}")
    try:
        os.makedirs(directory or ".", exist_ok=True)
        make(partial)
        os.replace(partial, path)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error}") from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def write_text(path: str, text: str) -> None:
    """Writes a text file, which appears when it is complete."""

    def make(partial: str) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, make)


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file, which appears when it is complete."""
    # Before the file is opened: a value that JSON cannot hold leaves nothing.
    write_text(path, as_json(value))
