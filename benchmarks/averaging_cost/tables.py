"""The tables and the chart of `python -m benchmarks.averaging_cost`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.averaging_cost import first_calls
from benchmarks.averaging_cost.averagers import (
    APPLY_WARM_UP,
    AVERAGING,
    COPY,
    SWAP,
    UPDATE,
    UPDATE_AFTER,
    WARM_UP,
)
from benchmarks.averaging_cost.report import (
    Sheet,
    digits,
    milliseconds,
    spread,
)
from benchmarks.averaging_cost.resnet_costs import (
    FORWARD,
    REFIT,
    SECOND_MODEL_STEP,
    STEP,
)
from benchmarks.common import timing

_AVERAGING = """\
One update: the median and the quartiles of calls that take turns in one
process. "/ floor" and "/ apply": the median of the ratios, each of one round.
"+": the time that it adds to the optimizer above it."""
_MEMORY = f"""\
Each way in a process of its own. The first call has all set-up in it; next: the
longest of the {WARM_UP - 1} calls after it, of an eager `apply` of the
{APPLY_WARM_UP - 1}, in which it is compiled. Peak: what the process holds in
all these beyond the weights and gradients, also in bytes a parameter."""
_FIRST_CALLS = f"""\
Eager calls, each row of fresh processes in which TensorFlow has started and the
model is built; medians of the processes. The forward pass is a `tf.function`
with training=True over {first_calls.BATCH_SIZE} images, the refit has \
{first_calls.REFIT_BATCHES} batches of as many.
"/ peer": the first `apply` over that of TensorFlow's EMA, which should be at
most 1, and the first refit over the first forward pass, at most 2.5. Longest:
of the next {first_calls.NEXT} calls, which should be at most 3 s."""
_SWAPPING = """\
The copy is written to memory that was allocated before. Growth: by how much the
process grows at most while it swaps, in bytes a parameter."""


def sheets(contents: Mapping[str, Any]) -> list[Sheet]:
    """Returns a table for each part that was measured, and each model."""
    tables = []
    for model, found in contents.get("averaging", {}).items():
        title = (
            f"{model}: {found['parameters']:,} parameters in "
            f"{found['variables']} variables"
        )
        tables.append(
            Sheet(
                f"Averaging {title}",
                ("", "ms", "middle half", "/ floor", "/ apply"),
                list(_averaging_rows(found)),
                _AVERAGING + _absent(found),
            )
        )
        tables.append(
            Sheet(
                f"First calls and memory of {title}",
                ("", "first, s", "next, s", "peak, B", "peak, MB"),
                list(_memory_rows(found)),
                _MEMORY,
            )
        )
    for model, found in contents.get("swapping", {}).items():
        tables.append(
            Sheet(
                f"Swapping {model}",
                ("", "ms", "middle half", "/ copy", "/ update", "growth, B"),
                list(_swapping_rows(found)),
                _SWAPPING,
            )
        )
    for model, found in contents.get("first_calls", {}).items():
        tables.append(
            Sheet(
                f"First calls, {model}: {found['variables']} variables",
                ("", "first, s", "/ peer", "longest, s", "later, ms"),
                list(_first_calls_rows(found["works"])),
                _FIRST_CALLS,
            )
        )
    for part, base in (
        ("refit", FORWARD),
        ("training", STEP),
        ("averaged_model", SECOND_MODEL_STEP),
    ):
        if part in contents:
            tables.append(
                Sheet(
                    f"ResNet-34: {part}",
                    ("", "ms", "middle half", "ratio", "first call, s"),
                    list(_model_rows(contents[part], base)),
                    _traces(contents[part]),
                )
            )
    if "imports" in contents:
        found = contents["imports"]
        tables.append(
            Sheet(
                "Imports",
                ("", "ms", "middle half"),
                [
                    [f"import {name}", *spread(found[name])]
                    for name in ("tensorflow", "swa_tf")
                ],
                "Packages that come with swa_tf and had not come with "
                f"TensorFlow: {', '.join(found['more']) or 'none'}.",
            )
        )
    return tables


def added(figures: Mapping[str, Any]) -> np.ndarray:
    """Returns the times less those of the base, where there is one."""
    return np.subtract(figures["times"], figures.get("base", 0.0))


def _present(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the ways that were measured, in order, with their figures."""
    for name in AVERAGING:
        if name in found["ways"]:
            yield name, found["ways"][name]


def _absent(found: Mapping[str, Any]) -> str:
    """Returns a sentence on the packages whose ways could not be measured."""
    packages = sorted(set(found["absent"].values()))
    return f"\nNot installed: {', '.join(packages)}." if packages else ""


def _averaging_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, figures in _present(found):
        times = added(figures)
        yield [
            f"+ {name}" if "base" in figures else name,
            *spread(times),
            digits(timing.ratio(times, figures["floor"])),
            digits(timing.ratio(times, figures["apply"])),
        ]


def _memory_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, figures in _present(found):
        yield [
            name,
            f"{figures['first']:.3f}",
            f"{figures['early']:.3f}",
            f"{figures['peak'] / found['parameters']:.2f}",
            f"{figures['peak'] / 1e6:.0f}",
        ]


def _swapping_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    ways = found["ways"]
    for name, base in {
        COPY: COPY,
        SWAP: COPY,
        UPDATE: UPDATE,
        UPDATE_AFTER: UPDATE,
    }.items():
        times = ways[name]["times"]
        ratio = digits(timing.ratio(times, ways[base]["times"]))
        growth = ways[name]["growth"] / found["parameters"]
        yield [
            name,
            *spread(times),
            *([ratio, ""] if base == COPY else ["", ratio]),
            digits(growth) if name == SWAP else "",
        ]


def _first_calls_rows(
    found: Mapping[str, Sequence[Sequence[float]]],
) -> Iterator[list[str]]:
    for name, runs in found.items():
        work = first_calls.WORKS[name]
        first = [run[0] for run in runs]
        ratio = longest = ""
        if work.peer:
            peers_first = [run[0] for run in found[work.peer]]
            ratio = f"{timing.ratio(first, peers_first):.2f}"
        start = 1 + work.n_next
        if work.n_next:
            longest = f"{np.median([max(run[1:start]) for run in runs]):.3f}"
        later = np.median([np.median(run[start:]) for run in runs])
        yield [
            name,
            f"{np.median(first):.3f}",
            ratio,
            longest,
            milliseconds(float(later)),
        ]


def _model_rows(found: Mapping[str, Any], base: str) -> Iterator[list[str]]:
    for name, figures in found.items():
        ratio = timing.ratio(figures["times"], found[base]["times"])
        yield [
            name,
            *spread(figures["times"]),
            f"{ratio:.3f}",
            digits(figures["first"]),
        ]


def _traces(found: Mapping[str, Any]) -> str:
    if REFIT not in found:
        return ""
    first, later = found[REFIT]["traces"]
    return (
        f"Python ran the network {first} times in the first refit, {later} "
        "times in all the others together."
    )


def draw(figure: Figure, contents: Mapping[str, Any]) -> None:
    """Draws bars of the ratios to the floor, models side by side."""
    models: Mapping[str, Any] = contents.get("averaging", {})
    if not models:
        return
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, (model, found) in zip(axes, models.items()):
        ratios = {
            name: timing.ratio(added(figures), figures["floor"])
            for name, figures in _present(found)
        }
        names = list(ratios)
        ax.barh(names, list(ratios.values()), color=_colors(names))
        ax.axvline(1.0, color="black", linewidth=0.8)
        ax.set_title(model)
        ax.set_xlabel("times the floor")
        ax.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()


def _colors(names: Sequence[str]) -> list[str]:
    return [
        "tab:orange" if n.startswith("apply") else "tab:blue" for n in names
    ]
