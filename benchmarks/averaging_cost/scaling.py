r"""Measures how the cost grows with parameters, variables and replicas.

    python -m benchmarks.averaging_cost.scaling --parameters=1M,10M,100M

prints a table for each of the three, with the slope that was fitted to it, and
writes `results.json`, `results.md` and `chart.png` to `--output_dir`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks.averaging_cost import (
    averagers,
    replicas,
    report,
    weights,
)
from benchmarks.averaging_cost.averagers import APPLY, FLOOR, IN_FUNCTION, SWAP
from benchmarks.averaging_cost.report import Sheet, digits, spread
from benchmarks.common import command_line, timing
from benchmarks.common.errors import BenchmarkError

AXES = ("parameters", "variables", "replicas")
_DEFAULTS = {
    "parameters": "1M,3M,10M,30M,100M,300M,500M,1B",
    "variables": "10,30,100,300,1000,3000",
    "replicas": "1,2,4",
}
_PARAMETERS_IN = 4  # variables
_VARIABLES_OF = 64  # parameters each
WAYS = {
    "parameters": (FLOOR, APPLY),
    "variables": (FLOOR, APPLY, IN_FUNCTION, SWAP),
    "replicas": (FLOOR, APPLY),
}
# From where on a line is fitted: below, the cost of a call shows.
_FITTED_FROM = {"parameters": 10**7, "variables": 100, "replicas": 1}
# Through two points any line goes.
_POINTS = 3
_TITLES = {
    "parameters": f"Parameters, in {_PARAMETERS_IN} variables",
    "variables": f"Variables of {_VARIABLES_OF} parameters",
    "replicas": "Replicas on one machine",
}


class Fit(NamedTuple):
    """t = scale * n^slope, and by what factor it misses at the worst point."""

    scale: float
    slope: float
    worst: float


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fits log t = log scale + slope * log n by least squares.

    >>> fit([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]).slope.round(6)
    1.0

    Args:
        sizes: The n, at least two different ones.
        seconds: The t.
    """
    x, y = np.log(sizes), np.log(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    missed = np.abs(y - intercept - slope * x).max()
    return Fit(np.exp(intercept), slope, np.exp(missed))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """Defines the flags, not at import: other scripts have the same names."""
    for axis, default in _DEFAULTS.items():
        flags.DEFINE_list(
            axis,
            default.split(","),
            f"{_TITLES[axis]}: their numbers, with K, M or B; or none.",
            flag_values=values,
        )
    for name, default, meaning in (
        ("rounds", 9, "Calls of each way that count."),
        ("memory_gb", 20, "That may be used, in 10^9 bytes."),
    ):
        flags.DEFINE_integer(
            name, default, meaning, lower_bound=1, flag_values=values
        )
    flags.DEFINE_string(
        "replicas_of",
        "4x2500K",
        "The model of the replicas: <variables>x<parameters of each>.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_dir", None, "Default: runs/scaling.", flag_values=values
    )
    return values


def run(
    values: Mapping[str, Any],
    arguments: Sequence[str] = (),
    alone: Callable[..., Any] = timing.alone,
) -> dict[str, Any]:
    """Measures, prints and writes.

    Args:
        values: Of the flags, by name.
        arguments: Of the command line, to be put on record.
        alone: What calls a function in a process of its own.

    Returns:
        What `results.json` holds: by axis and size the times of each way, and
        under "left_out" the sizes that want more memory.

    Raises:
        BenchmarkError: If a flag is not what it must be.
    """
    sizes = {axis: _numbers(axis, values[axis]) for axis in AXES}
    mirrored = weights.of_flag("replicas_of", values["replicas_of"])
    contents: dict[str, Any] = {"left_out": []}
    for axis in AXES:
        contents[axis] = {}
        if axis == "replicas" and sizes[axis]:
            contents[axis] = alone(
                replicas.measure, mirrored, sizes[axis], values["rounds"]
            )
            continue
        for size in sizes[axis]:
            shapes = (
                [(size // _PARAMETERS_IN,)] * _PARAMETERS_IN
                if axis == "parameters"
                else [(_VARIABLES_OF,)] * size
            )
            n_bytes = 10**9 * values["memory_gb"]
            if not averagers.fits(
                WAYS[axis], weights.parameters(shapes), n_bytes
            ):
                contents["left_out"].append(size)
                continue
            contents[axis][size] = alone(
                averagers.measure, shapes, WAYS[axis], values["rounds"]
            )
    report.publish(
        contents,
        values["output_dir"] or "runs/scaling",
        "How the cost of averaging grows",
        sheets(contents),
        lambda figure: draw(figure, contents),
        ("averaging_cost.scaling", arguments),
    )
    return contents


def _numbers(axis: str, given: Sequence[str]) -> list[int]:
    try:
        return [weights.number(each) for each in given]
    except ValueError as error:
        raise BenchmarkError(f"`--{axis}`: {error}") from error


def fits(axis: str, found: Mapping[int, Any]) -> dict[str, Fit]:
    """Fits the medians of each way, from the size in `_FITTED_FROM` on."""
    sizes = [size for size in found if size >= _FITTED_FROM[axis]]
    if len(sizes) < _POINTS:
        return {}
    return {
        way: fit(sizes, [_median(found[size][way]) for size in sizes])
        for way in WAYS[axis]
    }


def _median(figures: Mapping[str, Any]) -> float:
    return timing.summary(figures["times"]).median


def sheets(contents: Mapping[str, Any]) -> list[Sheet]:
    """Returns a table for each axis that was measured."""
    return [
        _sheet(axis, contents[axis], contents["left_out"])
        for axis in AXES
        if contents[axis]
    ]


def _sheet(axis: str, found: Mapping[int, Any], left_out: Any) -> Sheet:
    rows = [
        [
            f"{size:,}",
            way,
            *spread(figures["times"]),
            digits(timing.ratio(figures["times"], ways[FLOOR]["times"])),
            digits(1e9 * _median(figures) / size),
            f"{figures['first']:.2f}",
        ]
        for size, ways in found.items()
        for way, figures in ways.items()
    ]
    lines = [
        f"- {way}: t = {f.scale:.3g} s * n^{f.slope:.3f}, at the worst point "
        f"{100 * (f.worst - 1):.0f} % off."
        for way, f in fits(axis, found).items()
    ]
    if lines:
        start = f"Fitted to the medians from n = {_FITTED_FROM[axis]:,} on, by "
        lines.insert(0, f"{start}least squares of the logarithms:\n")
    if left_out and axis == "parameters":
        sizes = ", ".join(f"{size:,}" for size in left_out)
        lines.append(f"- Left out for want of memory: {sizes}.")
    headings = ("n", "", "ms", "middle half", "/ floor", "ns / n", "first, s")
    return Sheet(_TITLES[axis], headings, rows, "\n".join(lines))


def draw(figure: Figure, contents: Mapping[str, Any]) -> None:
    """Draws the times against the sizes, both as logarithms."""
    axes = figure.subplots(1, len(AXES), squeeze=False)[0]
    for ax, axis in zip(axes, AXES):
        for way in WAYS[axis]:
            points = [(n, _median(f[way])) for n, f in contents[axis].items()]
            if points:
                ax.loglog(*zip(*points), marker=".", label=way)
                ax.legend(fontsize="small")
        ax.set_xlabel(axis)
        ax.set_ylabel("s")
        ax.grid(alpha=0.3)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS.flag_values_dict()
    command_line.run(argv, lambda: run(values, sys.argv[1:]))


if __name__ == "__main__":
    define_flags()
    app.run(main)
