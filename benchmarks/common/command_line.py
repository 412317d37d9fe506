"""The start of a program whose arguments are flags."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.errors import BenchmarkError


def run(argv: Sequence[str], program: Callable[[], Any]) -> None:
    """Calls a program, and prints a `BenchmarkError` without a traceback.

    Args:
        argv: What absl has left of the command line: the name of the program.
        program: What to call if nothing else is left.
    """
    try:
        if len(argv) > 1:
            raise BenchmarkError(
                f"There are flags only. Received: {' '.join(argv[1:])}"
            )
        program()
    except BenchmarkError as error:
        sys.exit(f"error: {error}")


def command(module: str, arguments: Sequence[str]) -> str:
    """Returns the command line that runs a module of `benchmarks`.

    >>> command("cifar10", ["--preset=digits"])
    'python -m benchmarks.cifar10 --preset=digits'
    """
    return shlex.join(["python", "-m", f"benchmarks.{module}", *arguments])
