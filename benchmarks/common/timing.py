"""How the benchmarks measure: in turns, apart from set-up, time and memory.

What is to be compared takes turns, round by round, so that whatever else the
machine does meets all alike. The first calls are not among those that count.
Of many times the median is given, with the quartiles about it, and of two ways
the median of their ratios, each of one round.
"""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
# OpenMP's threads, which are torch's, go on spinning for some ms after their
# work, on processors that the next way wants.
_REST = 0.01


class Summary(NamedTuple):
    """The median of some measurements, and their quartiles."""

    median: float
    low: float
    high: float


class Step(NamedTuple):
    """What is timed, and what is to be done before each time, untimed."""

    work: Callable[[], Any]
    before: Callable[[], Any] | None = None

    def seconds(self) -> float:
        """Does the work once.

        Returns:
            The seconds that it took.
        """
        if self.before:
            self.before()
        time.sleep(_REST)
        start = time.perf_counter()
        self.work()
        return time.perf_counter() - start


def in_turns(
    ways: Mapping[str, Callable[[], T]], rounds: int
) -> dict[str, list[T]]:
    """Calls each of some functions once a round, each round from another on.

    >>> in_turns({"a": lambda: 1, "b": lambda: 2}, rounds=3)
    {'a': [1, 1, 1], 'b': [2, 2, 2]}

    Args:
        ways: The functions, by name.
        rounds: How often to call each.

    Returns:
        What they returned, by name.
    """
    names = list(ways)
    results: dict[str, list[T]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(ways[name]())
    return results


def measure(
    makers: Mapping[str, Callable[[], Step]], rounds: int, warm_up: int
) -> dict[str, dict[str, Any]]:
    """Makes some steps, warms each up, and times them against each other.

    Args:
        makers: What makes each step, by name.
        rounds: How many calls of each count.
        warm_up: Calls before those, the first among them.

    Returns:
        By name: `times`, in seconds, with those of round i in place i;
        `first`, the seconds of the first call with all that it took to make
        the step; `early`, the longest of the other calls before those that
        count; `peak`, the bytes by which the process grew at most from before
        the step was made until these were over, and `growth`, the same from
        when it was made. These two are of use where the process makes no
        other step: what it frees, TensorFlow keeps for its next tensors.
    """
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    for name, make in makers.items():
        reset_peak()
        before, start = memory(), time.perf_counter()
        step = steps[name] = make()
        making = time.perf_counter() - start
        peak, made = peak_memory(), memory()
        reset_peak()
        first = making + step.seconds()
        early = [step.seconds() for _ in range(warm_up - 1)]
        found[name] = {
            "first": first,
            "early": max(early, default=0.0),
            "peak": max(peak, peak_memory()) - before,
            "growth": peak_memory() - made,
        }
    for name, values in times(steps, rounds).items():
        found[name]["times"] = values
    return found


def times(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """The seconds of each step, in turns, by name."""
    gc.collect()
    gc.disable()  # As `timeit` does: it would come to one and not the other.
    try:
        return in_turns({k: s.seconds for k, s in steps.items()}, rounds)
    finally:
        gc.enable()


def summary(values: Sequence[float]) -> Summary:
    """The median and the quartiles.

    >>> summary([4.0, 1.0, 2.0, 3.0, 10.0])
    Summary(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = np.percentile(values, [25.0, 50.0, 75.0])
    return Summary(float(median), float(low), float(high))


def ratio(values: Sequence[float], floors: Sequence[float]) -> float:
    """The median of the ratios, each of one round.

    >>> ratio([2.0, 3.0, 9.0], [1.0, 2.0, 1.0])
    2.0
    """
    return float(np.median(np.divide(values, floors)))


def alone(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a fresh process, and returns what it returned."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *args).result()


def reset_peak() -> None:
    """Lets the peak of memory start anew, where the system can (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return  # The peak stays: what is measured against it comes out less.


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    linux = _status("VmHWM")
    if linux is not None:
        return linux
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory() -> int:
    """What this process holds now, in bytes; at most that, off Linux."""
    linux = _status("VmRSS")
    return peak_memory() if linux is None else linux


def _status(name: str) -> int | None:
    """A line of Linux's account of this process, in bytes."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
    except FileNotFoundError:
        return None
    return int(lines[name].split()[0]) * 1024
