"""The pages that are made of a grid: `table.md` and `table.json`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from benchmarks.cifar10.report import network
from benchmarks.common import command_line, files, provenance
from benchmarks.table.plan import SEEDS, departures
from benchmarks.table.summary import LEVEL, MEASURES, SETS, summary

WAYS = {
    "moving": "last moving",
    "refit": "last refit",
    "swa": "SWA moving",
    "swa_refit": "SWA refit",
    "decayed_moving": "decayed moving",
    "decayed_refit": "decayed refit",
}
"""From the key in `results.json` to the heading of a column."""

PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "momentum": {
        "0.1": (87.33, 88.88),
        "0.1 to 0.001": (89.54, 89.67, 89.94),
    },
    "momentumw": {
        "0.1": (84.42, 88.17),
        "0.1 to 0.001": (91.29, 91.41, 92.37),
    },
    "adam": {
        "0.01": (87.95, 89.15),
        "0.01 to 0.0001": (89.05, 89.06, 89.36),
    },
    "adamw": {
        "0.01": (85.23, 88.94),
        "0.01 to 0.0001": (90.98, 91.08, 92.10),
    },
}
"""Test accuracy in % by optimizer and learning rate: moving, refit, SWA refit.

Of the README of https://github.com/JGuillaumin/swa-tf, at a constant rate and
at one that falls. There is no average at a constant rate.
"""

_COLUMNS = f"""\
The tables below have means and standard deviations (n - 1) over the seeds.
"Last": the weights at the end. "SWA": the average of the weights at the end of
each epoch from a certain one on. "Decayed": the weights of another branch from
that epoch on, whose rate falls to zero. "Moving": with the batch-norm
statistics that training leaves; "refit": with those computed anew for the
weights in question. A difference is taken on the test images, for each seed by
itself; its interval holds {LEVEL:.0%}, by Student's t.
"""
_PUBLISHED = """\
These are test accuracies, in %, of the README of
[JGuillaumin/swa-tf](https://github.com/JGuillaumin/swa-tf), from runs of 200
epochs on CIFAR-10. It gives no deviations. Network and plan are not those of
the tables above: do not compare the heights. The README calls the network a
ResNet-34; the `train.py` beside it builds one of 32 layers and width 16.

A single rate is constant. A rate "0.1 to 0.001" is constant for 100 epochs,
falls in a line for 80, and is low for 20; the weights from epoch 100 on are
averaged. So the weights of such a row are nearer to "decayed" than to "last".
All weights are those of the epoch that was best on validation images. "Refit"
is "++" in the README. MomentumW and AdamW have a weight decay of 0.0001,
Momentum and Adam have none.
"""
_FORMATS = {"accuracy": ".2f", "loss": ".4f"}
_NAMES = {"accuracy": "accuracy, %", "loss": "loss"}


def pages(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the texts of the files, by their names.

    They depend on the results alone.

    Args:
        name: Of the grid.
        results: Of its runs, each as `results.json` has it.

    Raises:
        BenchmarkError: If the results do not belong in one table.
    """
    figures = summary(results)
    return {
        "table.json": files.as_json(figures),
        "table.md": _markdown(name, figures, results),
    }


def _markdown(
    name: str,
    figures: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> str:
    parts = [f"# {_title(results[0])}\n", _runs(figures), _COLUMNS]
    for measure in MEASURES:
        for images in SETS:
            parts += [
                f"## {images.capitalize()} {_NAMES[measure]}\n",
                _spreads(figures, images, measure),
            ]
    parts += ["## Differences\n", _differences(figures)]
    if results[0]["flags"]["dataset"] == "cifar10":
        parts += ["## Published\n", _PUBLISHED, _published()]
    parts += ["## Command\n", _made_by(name, results)]
    return "\n".join(parts)


def _title(contents: Mapping[str, Any]) -> str:
    flags = contents["flags"]
    return (
        f"{network(flags)}, {flags['epochs']} epochs, "
        f"{contents['epochs'][-1]['n_models']} averaged"
    )


def _runs(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{of['learning_rate']:g}",
            f"{of['weight_decay']:g}",
            ", ".join(map(str, of["seeds"])),
        ]
        for name, of in figures.items()
    ]
    return _table(["learning rate", "weight decay", "seeds"], rows)


def _spreads(figures: Mapping[str, Any], images: str, measure: str) -> str:
    rows = []
    for name, of in figures.items():
        ways = of[images]
        cells = [
            _spread(ways[way][measure], _FORMATS[measure])
            if way in ways
            else "-"
            for way in WAYS
        ]
        rows.append([name, *cells, str(len(of["seeds"]))])
    return _table([*WAYS.values(), "seeds"], rows)


def _published() -> str:
    rows = []
    for name, by_rate in PUBLISHED.items():
        for rate, accuracies in by_rate.items():
            cells = [f"{accuracy:.2f}" for accuracy in accuracies]
            cells += ["-"] * (3 - len(cells))
            rows.append([name, rate, *cells])
    headings = ["weights, moving", "weights, refit", "SWA refit"]
    return _table(["learning rate", *headings], rows)


def _spread(of: Mapping[str, Any], digits: str) -> str:
    if of["deviation"] is None:
        return f"{of['mean']:{digits}}"
    return f"{of['mean']:{digits}} ± {of['deviation']:{digits}}"


def _differences(figures: Mapping[str, Any]) -> str:
    rows = []
    for name, of in figures.items():
        for pair, by_measure in of["differences"].items():
            first, second = (WAYS[way] for way in pair.split("-"))
            cells: list[str] = []
            for measure in MEASURES:
                cells += _difference(by_measure[measure], _FORMATS[measure])
            rows.append([name, f"{first} - {second}", *cells])
    interval = f"{LEVEL:.0%} interval"
    headings = [
        *("accuracy, points", interval, "includes 0"),
        *("loss", interval, "includes 0"),
    ]
    return _table(["difference", *headings], rows)


def _difference(of: Mapping[str, Any], digits: str) -> list[str]:
    mean = f"{of['mean']:+{digits}}"
    if of["interval"] is None:
        return [mean, "one seed: no interval", ""]
    low, high = of["interval"]
    includes_0 = low <= 0.0 <= high
    words = "yes" if includes_0 else "**no**"
    return [mean, f"{low:+{digits}} to {high:+{digits}}", words]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, with a row for each optimizer or more."""
    table = Table("optimizer", *(Column(h) for h in headings), box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(table)
    lines = map(str.rstrip, buffer.getvalue().splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def _made_by(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    versions: dict[str, str] = {}
    for contents in results:
        for package, version in contents["stack"].items():
            found = versions.get(package, version).split(" and ")
            versions[package] = " and ".join(dict.fromkeys([*found, version]))
    hours = sum(c["timings"]["total_seconds"] for c in results) / 3600.0
    cpus = sorted({c["timings"]["cpus"] for c in results})
    return provenance.made_by(
        "\n    ".join(_commands(name, results)),
        versions,
        f"in {hours:.1f} hours of training and evaluation on "
        f"{' and '.join(map(str, cpus))} cores",
    )


def _commands(name: str, results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the commands that make the same runs again.

    Optimizers that share seeds and settings share a command.
    """
    seeds: dict[str, list[int]] = {}
    settings: dict[str, str] = {}
    for contents in results:
        flags = contents["flags"]
        seeds.setdefault(flags["optimizer"], []).append(flags["seed"])
        settings[flags["optimizer"]] = ",".join(
            f"{name}={value}" for name, value in departures(flags).items()
        )
    groups: dict[tuple[str, str], list[str]] = {}
    for optimizer, usual in SEEDS.items():
        if optimizer in seeds:
            other = seeds[optimizer] != list(usual)
            shown = ",".join(map(str, seeds[optimizer])) if other else ""
            group = groups.setdefault((shown, settings[optimizer]), [])
            group.append(optimizer)
    first = results[0]["flags"]
    for (shown, changed), optimizers in groups.items():
        given = {
            "preset": first["preset"],
            "name": name if name != first["preset"] else "",
            "optimizers": ",".join(optimizers)
            if optimizers != list(SEEDS)
            else "",
            "seeds": shown,
            "data_dir": first["data_dir"] or "",
            "settings": changed,
        }
        yield command_line.command(
            "table",
            [f"--{flag}={value}" for flag, value in given.items() if value],
        )
