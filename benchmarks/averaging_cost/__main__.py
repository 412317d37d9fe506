r"""Measures averaging against one pass over memory, and against peers.

    python -m benchmarks.averaging_cost --models=resnet34,4x25M --rounds=15
    python -m benchmarks.averaging_cost --quick

prints tables of `apply`, of what other libraries have for it, of swapping the
averages in and back, of first calls, of a refit against a forward pass, of
training steps with and without averaging, also beside a live averaged model,
and of the import. `--output_dir` gets `results.json`, `results.md` and
`chart.png`. What is not installed is named as absent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from benchmarks.averaging_cost import (
    comparison,
    first_calls,
    import_times,
    report,
    resnet_costs,
    tables,
    weights,
)
from benchmarks.averaging_cost.averagers import AVERAGING
from benchmarks.common import command_line, timing

PARTS = (
    "averaging",
    "swapping",
    "first_calls",
    "refit",
    "training",
    "averaged_model",
    "imports",
)
MODELS = ("resnet34", "4x25M", "1000x64", "4x125M")
_QUICK = {
    "models": ["3x1K"],
    "first_calls": ["MobileNet"],
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
    add(
        flags.DEFINE_list,
        "first_calls",
        ["EfficientNetV2B0", "NASNetMobile"],
        "Models of tf.keras.applications whose first calls are timed, or none.",
    )
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
    applications = first_calls.names_of_flag(
        "first_calls", values["first_calls"]
    )
    models = {}
    for model in values["models"]:
        models[model] = weights.of_flag("models", model)
        comparison.groups(
            values["ways"], weights.parameters(models[model]), n_bytes
        )
    network = [values[name] for name in ("width", "batch_size")]
    measures: dict[str, Callable[[], Any]] = {
        "averaging": lambda: {
            model: comparison.averaging(
                shapes, values["ways"], rounds, n_bytes, alone
            )
            for model, shapes in models.items()
        },
        "swapping": lambda: {
            model: comparison.swapping(shapes, rounds, alone)
            for model, shapes in models.items()
        },
        "first_calls": lambda: {
            name: first_calls.measure(name, min(rounds, 3), alone)
            for name in applications
        },
        "refit": lambda: alone(
            resnet_costs.refit, *network, values["batches"], rounds
        ),
        "training": lambda: alone(resnet_costs.training, *network, 3 * rounds),
        "averaged_model": lambda: alone(
            resnet_costs.averaged_model, *network, 3 * rounds
        ),
        "imports": lambda: import_times.measure(min(rounds, 5)),
    }
    contents = {
        part: measures[part]() for part in PARTS if part in values["parts"]
    }
    report.publish(
        contents,
        values["output_dir"] or "runs/cost",
        "What averaging costs",
        tables.sheets(contents),
        lambda figure: tables.draw(figure, contents),
        ("averaging_cost", arguments),
    )
    return contents


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS.flag_values_dict()
    command_line.run(argv, lambda: run(values, sys.argv[1:]))


if __name__ == "__main__":
    define_flags()
    app.run(main)
