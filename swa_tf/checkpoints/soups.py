"""Greedy soups: averages of the checkpoints that improve a metric."""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from swa_tf.checkpoints import paths, weighted_mean
from swa_tf.checkpoints.paths import Path
from swa_tf.support import atomic_files, checks


@dataclasses.dataclass(frozen=True)
class Trial:
    """A checkpoint that was tried.

    >>> swa_tf.soups.Trial("ckpt-1", 0.9, 0.9, added=True).added
    True

    Args:
        path: The checkpoint.
        alone: Its own metric.
        in_soup: The metric of the soup with it.
        added: Whether that was better than without it.
    """

    path: str
    alone: float
    in_soup: float
    added: bool


@dataclasses.dataclass(frozen=True)
class Soup:
    """The result of `greedy_soup`; `print` shows it as a table.

    >>> trial = swa_tf.soups.Trial("ckpt-1", 0.9, 0.9, added=True)
    >>> swa_tf.soups.Soup([trial], {}).paths
    ['ckpt-1']

    Args:
        trials: All checkpoints in the order in which they were tried.
        report: As `average_checkpoints` returns it, of those that were added.
    """

    trials: list[Trial]
    report: dict[str, Any]

    @property
    def paths(self) -> list[str]:
        """The checkpoints that were added.

        >>> swa_tf.soups.Soup([], {}).paths
        []
        """
        return [trial.path for trial in self.trials if trial.added]

    @property
    def metric(self) -> float:
        """The metric of the soup.

        >>> trial = swa_tf.soups.Trial("ckpt-1", 0.9, 0.9, added=True)
        >>> swa_tf.soups.Soup([trial], {}).metric
        0.9
        """
        return next(t.in_soup for t in reversed(self.trials) if t.added)

    def __str__(self) -> str:
        from rich.console import Console  # on first use, as it is not small
        from rich.table import Table
        from rich.text import Text

        table = Table("", "checkpoint", "alone", "in the soup", "verdict")
        for i, trial in enumerate(self.trials, start=1):
            table.add_row(
                str(i),
                Text(trial.path),  # brackets and colons are no markup
                f"{trial.alone:.6g}",
                f"{trial.in_soup:.6g}",
                "added" if trial.added else "left out",
            )
        text = io.StringIO()  # also where the terminal has colours, or Jupyter
        console = Console(
            file=text, width=10_000, color_system=None, force_jupyter=False
        )
        console.print(table)
        return text.getvalue().rstrip()


def greedy_soup(
    inputs: Path | Iterable[Path],
    output: Path,
    metric: Callable[[str], float],
    *,
    mode: str = "max",
    optimizer_slots: str = "keep",
    from_newest: Iterable[str] = (),
) -> Soup:
    """Averages the checkpoints that improve a metric, and writes the average.

    The soup begins as the checkpoint with the best metric. The others are
    tried in the order of theirs, and each stays in if the average with it is
    better than without it. N checkpoints cost 2 N - 1 evaluations.

    >>> def distance(path):                    # from 3, of the weight `w`
    ...     weights = tf.train.Checkpoint(w=tf.Variable(0.0))
    ...     weights.read(path).expect_partial()
    ...     return abs(float(weights.w) - 3.0)
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for value in (2.0, 5.0, 9.0):
    ...         checkpoint = tf.train.Checkpoint(w=tf.Variable(value))
    ...         _ = checkpoint.write(os.path.join(run, f"ckpt-{value:.0f}"))
    ...     output = os.path.join(run, "soup")
    ...     soup = swa_tf.greedy_soup(run, output, distance, mode="min")
    ...     [os.path.basename(path) for path in soup.paths], soup.metric
    (['ckpt-2', 'ckpt-5'], 0.5)

    Args:
        inputs: As in `average_checkpoints`.
        output: As in `average_checkpoints`. The JSON file beside it also
            has the trials, as `soup`, with "nan" and "inf" for such metrics.
        metric: Called with the path of an input or of an average; returns a
            number. It should load the weights, compute any batch-norm
            statistics anew (`refit_batch_norm`), and evaluate on held-out data.
        mode: "max" if a larger metric is better, "min" if a smaller one is.
        optimizer_slots: As in `average_checkpoints`.
        from_newest: As in `average_checkpoints`.

    Returns:
        The trials and the report; `print(soup)` shows a table.

    Raises:
        FileNotFoundError, FileExistsError, TypeError, ValueError: As
            `average_checkpoints` does; if `metric` returns no number, or NaN
            for every input. Nothing is written then, nor if `metric` raises.

    References:
        Wortsman et al. 2022, Model soups, algorithm 1,
        https://arxiv.org/abs/2203.05482, where equal metrics are enough.
    """
    found = paths.resolved(inputs)
    checks.choice("mode", mode, ("max", "min"))
    if not callable(metric):
        wanted = "a function of a path"
        raise checks.wrong("metric", wanted, metric, TypeError)
    output = paths.checked_output(output, found)
    patterns = weighted_mean.patterns(from_newest)
    sign = 1.0 if mode == "max" else -1.0

    def average(soup: list[str], to: str, **kwargs: Any) -> dict[str, Any]:
        kwargs.update(optimizer_slots=optimizer_slots, from_newest=patterns)
        return weighted_mean.merge(soup, to, **kwargs)

    def measured(path: str) -> float:
        value: Any = metric(path)
        try:
            return float(value)
        except (TypeError, ValueError):
            received = f"{value!r} for '{path}'"
            error = checks.must(
                "metric", "return a number", received, TypeError
            )
            raise error from None

    average(found, output, dry_run=True)  # errors come before evaluations
    alone = {path: measured(path) for path in found}
    order = sorted(
        found, key=lambda path: (math.isnan(alone[path]), -sign * alone[path])
    )
    best = alone[order[0]]
    if math.isnan(best):
        wanted = "return a number for at least one input"
        raise checks.must("metric", wanted, "NaN for each")
    soup, trials = [order[0]], [Trial(order[0], best, best, added=True)]
    with atomic_files.scratch_folder(output) as scratch:
        for i, path in enumerate(order[1:]):
            candidate = f"{scratch / str(i)}{paths.suffix(output)}"
            try:
                average([*soup, path], candidate, is_latest=False)
                value = measured(candidate)
            except weighted_mean.NotFiniteError:
                value = math.nan
            added = sign * value > sign * best
            trials.append(Trial(path, alone[path], value, added))
            if added:
                soup, best = [*soup, path], value
            for file in [*paths.files(candidate), f"{candidate}.json"]:
                pathlib.Path(file).unlink(missing_ok=True)
        about = {"soup": [_as_json(trial) for trial in trials]}
        report = average(soup, output, about=about)
    weighted_mean.warn(report)
    return Soup(trials, report)


def _as_json(trial: Trial) -> dict[str, Any]:
    """Returns its attributes, with NaN and infinity as strings for JSON."""
    attributes = dataclasses.asdict(trial)
    for name in ("alone", "in_soup"):
        if not math.isfinite(attributes[name]):
            attributes[name] = str(attributes[name])
    return attributes
