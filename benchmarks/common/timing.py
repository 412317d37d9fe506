"""Measurement of time and memory: in turns, and apart from set-up.

Steps that are to be compared take turns, round by round, so that other work of
the machine slows all of them alike. The first calls do not count. Of many times
the median and the quartiles are given; of two steps the median of the ratios,
each of one round.
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
# The threads of OpenMP, which torch uses, spin for some ms after their work, on
# processors that the next step needs.
_REST = 0.01


class Summary(NamedTuple):
    """The median of some measurements, and their quartiles."""

    median: float
    low: float
    high: float


class Step(NamedTuple):
    """Work to be timed.

    Attributes:
        work: What is timed.
        before: What is done before it each time, untimed.
        warm_up: Calls that it needs before those that count.
    """

    work: Callable[[], Any]
    before: Callable[[], Any] | None = None
    warm_up: int = 1

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
        warm_up: Calls before those, the first among them; more where a step
            needs more.

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
        n_early = max(warm_up, step.warm_up) - 1
        early = [step.seconds() for _ in range(n_early)]
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
    """Returns the seconds of each step, by name; the steps take turns."""
    gc.collect()
    gc.disable()  # As `timeit` does: a collection would slow one step alone.
    try:
        return in_turns({k: s.seconds for k, s in steps.items()}, rounds)
    finally:
        gc.enable()


def summary(values: Sequence[float]) -> Summary:
    """Returns the median and the quartiles.

    >>> summary([4.0, 1.0, 2.0, 3.0, 10.0])
    Summary(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = np.percentile(values, [25.0, 50.0, 75.0])
    return Summary(float(median), float(low), float(high))


def ratio(values: Sequence[float], floors: Sequence[float]) -> float:
    """Returns the median of the ratios, each of one round.

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
        return  # The peak stays, and a growth measured from it is too small.


def peak_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    linux = _status("VmHWM")
    if linux is not None:
        return linux
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory() -> int:
    """Returns the memory of this process in bytes; off Linux, its peak."""
    linux = _status("VmRSS")
    return peak_memory() if linux is None else linux


def _status(name: str) -> int | None:
    """Returns a line of /proc/self/status in bytes, or None off Linux."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
    except FileNotFoundError:
        return None
    return int(lines[name].split()[0]) * 1024
