"""Averages of the checkpoints of a run, and along it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from swa_tf.checkpoints import paths, weighted_mean
from swa_tf.checkpoints.paths import Path
from swa_tf.support import atomic_files, checks


def average_checkpoints(
    inputs: Path | Iterable[Path],
    output: Path,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    decay: float | None = None,
    optimizer_slots: str = "keep",
    from_newest: Iterable[str] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Averages the weights in checkpoints, and writes a checkpoint of them.

        average <- average + c * (weight - average)

    over the inputs in their order, in float64, with c = 1 / (n + 1): what
    `StochasticWeightAveraging.apply` would have made when the inputs were
    written. The result has their types and form, and loads as they do.

    >>> with tempfile.TemporaryDirectory() as run:
    ...     for value in (1.0, 2.0, 6.0):
    ...         checkpoint = tf.train.Checkpoint(w=tf.Variable(value))
    ...         _ = checkpoint.write(os.path.join(run, f"ckpt-{value:.0f}"))
    ...     output = os.path.join(run, "average")
    ...     _ = swa_tf.average_checkpoints(run, output)
    ...     _ = checkpoint.read(output)
    >>> float(checkpoint.w)
    3.0

    A model with batch normalization must then have its statistics computed
    anew, by `refit_batch_norm`, as a warning says.

    Every weight of floating point or complex numbers is averaged. All else
    comes from the newest input, which has the highest number at the end of its
    name, or was written last: other types, and what belongs to optimizers,
    metrics, generators and `WeightAverage`s. Where a file does not say what is
    a weight, names and shapes decide, and a warning says so. Only what is
    averaged must agree between inputs. docs/checkpoints.md says more.

    Memory does not depend on the number of inputs. Nothing in them is executed
    or unpickled, and checksums are checked where the form has them.

    Args:
        inputs: Paths of checkpoints of one form: what
            `tf.train.load_checkpoint` takes (object-based or name-based),
            SavedModel folders, whose checkpoints are taken, `.weights.h5`,
            `.weights.json`, `.h5` or `.keras`. Or a directory: all in it.
        output: The path of the result, which must not exist. `<output>.json`
            beside it has the report. Any path may be remote: `gs://bucket/x`.
            In a folder without checkpoints of others, TensorFlow's file
            `checkpoint` names it, for `tf.train.latest_checkpoint`.
        weights: One positive number for each input; c is the input's share of
            the sum so far: averages of n and m models have weights n and m.
        decay: In [0, 1): c = 1 - decay, the exponential average of the
            sequence, which begins with the first input. Excludes `weights`.
        optimizer_slots: "keep" takes what optimizers keep for each weight,
            such as momenta, from the newest input; "drop" leaves it out (of a
            Keras file all that is an optimizer's).
        from_newest: Regular expressions; tensors whose name one of them
            matches somewhere are taken from the newest input as well.
        dry_run: Whether to check and report only, and write nothing.
        progress: Called with the bytes read so far, and to read in all.

    Returns:
        The report: `inputs` with their share in the average, `newest`, the
        names of the tensors `averaged`, `from_newest` and `dropped`, of the
        averaged `batch_norm_statistics`, those `guessed` to be no weights,
        shape and type of all `tensors`, and more.

    Raises:
        FileNotFoundError: If an input does not exist.
        FileExistsError: If the output exists, or is one of the inputs.
        TypeError, ValueError: If an argument is not as above, an input is
            damaged, inputs differ in which weights they have, or of which shape
            or type, or an average is NaN or infinite where the newest input is
            not. Nothing has been written then.

    References:
        Izmailov et al. 2018, section 3.1, https://arxiv.org/abs/1803.05407.
        Averages of the last checkpoints: Vaswani et al. 2017, section 6.1,
        https://arxiv.org/abs/1706.03762.
    """
    found = paths.resolved(inputs)
    coefficients = _coefficients(len(found), weights, decay)
    report = weighted_mean.merge(
        found,
        paths.checked_output(output, found),
        coefficients,
        optimizer_slots=optimizer_slots,
        from_newest=weighted_mean.patterns(from_newest),
        dry_run=dry_run,
        progress=progress,
        about={
            "weights": None if weights is None else [float(w) for w in weights],
            "decay": None if decay is None else float(decay),
        },
    )
    if not dry_run:
        weighted_mean.warn(report)
    return report


def average_windows(
    inputs: Path | Iterable[Path],
    output_dir: Path,
    window: int,
    *,
    optimizer_slots: str = "keep",
    from_newest: Iterable[str] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Averages each `window` consecutive checkpoints along a run.

    Each mean is computed anew: to subtract the oldest input would drift.

    >>> with tempfile.TemporaryDirectory() as run:
    ...     for value in (1.0, 2.0, 6.0):
    ...         checkpoint = tf.train.Checkpoint(w=tf.Variable(value))
    ...         _ = checkpoint.write(os.path.join(run, f"ckpt-{value:.0f}"))
    ...     output = os.path.join(run, "windows")
    ...     for path in swa_tf.average_windows(run, output, window=2):
    ...         _ = checkpoint.read(path)
    ...         print(os.path.basename(path), float(checkpoint.w))
    ckpt-2 1.5
    ckpt-6 4.0

    Args:
        inputs: As in `average_checkpoints`, in the order of the run.
        output_dir: A folder for the results, which must not exist. Each is
            named like the newest input in it.
        window: The number of inputs in each average.
        optimizer_slots: As in `average_checkpoints`.
        from_newest: As in `average_checkpoints`.
        dry_run: Whether to check only, and write nothing.
        progress: Called with the bytes read so far, and to read in all.

    Returns:
        The paths of the results, in order.

    Raises:
        FileExistsError: If `output_dir` exists.
        TypeError, ValueError: As `average_checkpoints` does; if there are
            fewer inputs than `window`, or two of one name. Nothing has been
            written then.
    """
    found = paths.resolved(inputs)
    names = [paths.name_of(path) for path in found]
    if checks.integer("window", window, at_least=1) > len(found):
        wanted = f"at most {len(found)}, the number of inputs"
        raise checks.wrong("window", wanted, window)
    if len(set(names)) < len(names):
        wanted = "have different names, which the results take"
        raise checks.must("inputs", wanted, ", ".join(sorted(names)))
    folder = atomic_files.checked_path("output_dir", output_dir).rstrip("/")
    if atomic_files.is_there(folder):
        received = f"output_dir='{folder}'"
        raise checks.must("output_dir", "not exist", received, FileExistsError)
    ends = range(window, len(found) + 1)
    written = [os.path.join(folder, names[end - 1]) for end in ends]
    options: dict[str, Any] = {
        "optimizer_slots": optimizer_slots,
        "from_newest": weighted_mean.patterns(from_newest),
    }
    if dry_run:
        weighted_mean.merge(found, written[-1], dry_run=True, **options)
        return written
    report: dict[str, Any] = {}
    with atomic_files.scratch_folder(folder) as scratch:
        parent, name = atomic_files.split(folder)
        new = scratch / name
        for i, end in enumerate(ends):

            def scaled(done: int, total: int, i: int = i) -> None:
                if progress is not None:
                    progress(i * total + done, len(ends) * total)

            report = weighted_mean.merge(
                found[end - window : end],
                os.fspath(new / names[end - 1]),
                progress=scaled,
                **options,
            )
        if atomic_files.is_remote(folder):
            atomic_files.move(sorted(new.iterdir()), folder)
        else:
            atomic_files.move([new], parent)
    weighted_mean.warn(report)
    return written


def _coefficients(
    n: int, weights: Sequence[float] | np.ndarray | None, decay: float | None
) -> list[float] | None:
    """Returns the c for each of n inputs; None for the equal average."""
    checks.at_most_one(decay=decay, weights=weights)
    if decay is not None:
        checks.real("decay", decay, "in [0, 1)", lambda number: number < 1)
        return [1.0] + [1.0 - float(decay)] * (n - 1)
    if weights is None:
        return None
    wanted = "numbers > 0, one for each input"
    numbers = checks.one_each(n, wanted, "weights", weights, checks.positive)
    largest = max(numbers)
    parts = [number / largest for number in numbers]
    sums = itertools.accumulate(parts)
    # The first parts may be 0, if `largest` is very much larger.
    return [part / total if total else 1.0 for part, total in zip(parts, sums)]
