r"""What averaging costs: against the floor of one pass over memory, and peers.

    python -m benchmarks.averaging_cost --models=resnet34,4x25M --rounds=15
    python -m benchmarks.averaging_cost --quick

prints tables of `apply`, of what other libraries have for it, of swapping the
averages in and back, of a refit against a forward pass, of training steps with
and without averaging, and of the import. `--output_dir` gets `results.json`,
`results.md` and `chart.png`. What is not installed is named as absent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from benchmarks import (
    averagers,
    cost_report,
    cost_tables,
    inputs,
    model_costs,
    timing,
)
from benchmarks.averagers import APPLY, AVERAGING, FLOOR, SWAP, SWAPPING, WAYS
from benchmarks.errors import BenchmarkError

PARTS = ("averaging", "swapping", "refit", "training", "imports")
MODELS = ("resnet34", "4x25M", "1000x64", "4x125M")
_QUICK = {
    "models": ["3x1K"],
    "rounds": 2,
    "width": 4,
    "batch_size": 8,
    "batches": 2,
}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """Defines the flags, not at import: other scripts have the same names."""

    def add(define: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        define(*args, **kwargs, flag_values=values)

    def some_of(name: str, allowed: Sequence[str]) -> None:
        flags.register_validator(
            name,
            lambda given: given and set(given) <= set(allowed),
            f"It must be some of {', '.join(allowed)}.",
            flag_values=values,
        )

    add(
        flags.DEFINE_list,
        "models",
        list(MODELS),
        "resnet34, and <variables>x<parameters of each>, with K, M or B.",
    )
    add(flags.DEFINE_list, "parts", list(PARTS), f"Of {', '.join(PARTS)}.")
    some_of("parts", PARTS)
    add(
        flags.DEFINE_list,
        "ways",
        list(AVERAGING),
        "To average, beside the floor and apply.",
    )
    some_of("ways", AVERAGING)
    integers = {
        "rounds": (15, "Calls of each way that count."),
        "width": (8, "Of the ResNet-34 that is refitted and trained."),
        "batch_size": (128, "Of its data."),
        "batches": (8, "To refit it with."),
        "memory_gb": (20, "That may be used, in 10^9 bytes."),
    }
    for name, (default, meaning) in integers.items():
        add(flags.DEFINE_integer, name, default, meaning, lower_bound=1)
    add(
        flags.DEFINE_bool,
        "quick",
        False,
        "To see that it works: tiny values in place of those of "
        + ", ".join(f"--{name}" for name in _QUICK)
        + ". The times mean nothing.",
    )
    add(flags.DEFINE_string, "output_dir", None, "Default: runs/cost.")
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
        What `results.json` holds.

    Raises:
        BenchmarkError: If a model has no such name, or is too large.
    """
    values = {**values, **(_QUICK if values["quick"] else {})}
    rounds, n_bytes = values["rounds"], 10**9 * values["memory_gb"]
    models, contents = {}, {}
    for model in values["models"]:
        models[model] = inputs.of_flag("models", model)
        groups(values["ways"], inputs.parameters(models[model]), n_bytes)
    for part in PARTS:
        if part not in values["parts"]:
            continue
        if part == "averaging":
            contents[part] = {
                model: averaging(shapes, values["ways"], rounds, n_bytes, alone)
                for model, shapes in models.items()
            }
        elif part == "swapping":
            contents[part] = {
                model: swapping(shapes, rounds, alone)
                for model, shapes in models.items()
            }
        elif part == "refit":
            sizes = [values[k] for k in ("width", "batch_size", "batches")]
            contents[part] = alone(model_costs.refit, *sizes, rounds)
        elif part == "training":
            sizes = [values[k] for k in ("width", "batch_size")]
            contents[part] = alone(model_costs.training, *sizes, 3 * rounds)
        else:
            contents[part] = model_costs.imports(min(rounds, 5))
    contents["command"] = cost_report.command("averaging_cost", arguments)
    contents["setting"] = cost_report.setting()
    tables = cost_tables.sheets(contents)
    cost_report.show(tables)
    directory = values["output_dir"] or "runs/cost"
    cost_report.write(
        directory,
        "What averaging costs",
        tables,
        contents,
        lambda figure: cost_tables.draw(figure, contents),
    )
    print(f"The reports are in {directory}/")
    return contents


def averaging(
    shapes: inputs.Shapes,
    ways: Sequence[str],
    rounds: int,
    n_bytes: int,
    alone: Callable[..., Any],
) -> dict[str, Any]:
    """Times the ways to average a model, and measures their memory.

    Returns:
        `parameters` and `variables`, their numbers; `absent`, from the ways
        that are to the packages that they need; `ways`, from the others to
        what `timing.measure` has of each, with `floor` and `apply`, the times
        of these in the same rounds, and `base`, those of the way beyond which
        it counts.
    """
    found: dict[str, Any] = {}
    n_parameters = inputs.parameters(shapes)
    for group in groups(ways, n_parameters, n_bytes):
        times = {
            name: figures["times"]
            for name, figures in alone(
                averagers.measure, shapes, group, rounds
            ).items()
        }
        for name in group:
            yardsticks = {"floor": times[FLOOR], "apply": times[APPLY]}
            if WAYS[name].beyond:
                yardsticks["base"] = times[WAYS[name].beyond]
            found.setdefault(name, {"times": times[name], **yardsticks})
    for name in found:
        by_itself = alone(averagers.measure, shapes, [name], 0)[name]
        found[name] = {**by_itself, **found[name]}
    return {
        "parameters": n_parameters,
        "variables": len(shapes),
        "ways": found,
        "absent": {n: WAYS[n].needs for n in ways if WAYS[n].absent},
    }


def swapping(
    shapes: inputs.Shapes, rounds: int, alone: Callable[..., Any]
) -> dict[str, Any]:
    """Times swaps against a copy of the weights, and measures their memory."""
    found = alone(averagers.measure, shapes, list(SWAPPING), rounds)
    by_itself = alone(averagers.measure, shapes, [SWAP], 0)[SWAP]
    found[SWAP]["growth"] = by_itself["growth"]
    return {"parameters": inputs.parameters(shapes), "ways": found}


def groups(
    ways: Sequence[str], n_parameters: int, n_bytes: int
) -> list[list[str]]:
    """Ways that fit into memory together, each with the floor and `apply`.

    A way that counts as a difference has the way beside it that it is
    compared with. What is absent is left out.

    >>> groups(["plain formula", "Keras use_ema"], 10**9, 40 * 10**9)[1][2:]
    ['Keras SGD', 'Keras use_ema']

    Args:
        ways: Their names.
        n_parameters: Of the model.
        n_bytes: Of memory.

    Raises:
        BenchmarkError: If one of them does not fit even by itself.
    """
    yardsticks = [FLOOR, APPLY]
    result = [list(yardsticks)]
    for name in ways:
        if name in yardsticks or WAYS[name].absent:
            continue
        unit = (
            [name] if WAYS[name].beyond is None else [WAYS[name].beyond, name]
        )
        longer = list(dict.fromkeys([*result[-1], *unit]))
        if averagers.fits(longer, n_parameters, n_bytes):
            result[-1] = longer
        else:
            result.append([*yardsticks, *unit])
    for group in result:
        if not averagers.fits(group, n_parameters, n_bytes):
            raise BenchmarkError(
                f"`--memory_gb` must be more for {n_parameters:,} parameters. "
                f"Received: --memory_gb={n_bytes // 10**9}"
            )
    return [g for g in result if len(g) > 2] or result


if __name__ == "__main__":
    define_flags()
    app.run(functools.partial(cost_report.main, run))
