"""Post-hoc EMA: the average of any length, from snapshots of two averages."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from swa_tf.averaging import gamma_of
from swa_tf.checkpoints import paths, weighted_mean
from swa_tf.checkpoints.paths import Path
from swa_tf.support import checks

_MAX_PROFILE_ERROR = 0.05  # from which on a warning says so


def posthoc_average(
    snapshots: Path | Iterable[Path],
    relative_width: float,
    output: Path,
    *,
    snapshot_widths: Sequence[float] | None = None,
    snapshot_n_models: Sequence[int] | None = None,
    optimizer_slots: str = "keep",
    from_newest: Iterable[str] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the average of any length, from snapshots of other lengths.

        average = sum_i x_i * snapshot_i,   sum_i x_i = 1

    where the x make the squared distance between the profile of the sum and
    that of a `PowerFunctionAverage(relative_width)`, kept until the newest
    snapshot, smallest: a least-squares problem of float64, in which the inner
    products of profiles are known in closed form. So the length is chosen
    after the training. Some x are negative.

    >>> weight = tf.Variable(0.0)
    >>> averages = [swa_tf.PowerFunctionAverage(w) for w in (0.05, 0.1, 0.07)]
    >>> with tempfile.TemporaryDirectory() as run:
    ...     snapshots = []
    ...     for step in range(1, 101):
    ...         _ = weight.assign(step)
    ...         for average in averages:
    ...             average.apply([weight])
    ...         for average in averages[:2] if step % 10 == 0 else []:
    ...             path = os.path.join(run, f"{average.relative_width}-{step}")
    ...             saved = tf.train.Checkpoint(weight=weight, average=average)
    ...             with swa_tf.averaged_weights(average, [weight]):
    ...                 snapshots.append(saved.write(path))
    ...     output = os.path.join(run, "posthoc")
    ...     report = swa_tf.posthoc_average(snapshots, 0.07, output)
    ...     checkpoint = tf.train.Checkpoint(weight=weight)
    ...     _ = checkpoint.read(output).expect_partial()
    >>> abs(float(weight) / float(averages[2].average(weight)) - 1.0) < 2e-4
    True

    A snapshot is a checkpoint that was written inside `averaged_weights` of a
    `PowerFunctionAverage`, with the model and that average in it: its weights
    are the average's, and it says of which width and of how many models. Of
    files that do not say so, such as Keras's, the two are given.

    All else is as in `average_checkpoints`, but for batch-norm statistics:
    they come from the newest snapshot, which is of the most models, since a
    variance with negative shares may be negative. `refit_batch_norm` must
    compute them anew, as a warning says.

    Args:
        snapshots: Paths of snapshots, whose averages are of the same models;
            as `inputs` of `average_checkpoints`. They should be of two widths
            or more, or the error is large.
        relative_width: Of the average wanted, as in `PowerFunctionAverage`.
            The error is smaller the nearer it is to their widths, and the
            more snapshots there are.
        output: As in `average_checkpoints`.
        snapshot_widths: The relative width of each snapshot, where the files
            do not say it; with `snapshot_n_models`.
        snapshot_n_models: The number of models, >= 1, that each had averaged.
        optimizer_slots: As in `average_checkpoints`.
        from_newest: As in `average_checkpoints`.
        dry_run: As in `average_checkpoints`.
        progress: As in `average_checkpoints`.

    Returns:
        The report of `average_checkpoints`, with `relative_width`, and with
        `profile_error`: the norm of the difference between the profiles, as a
        share of that of the profile wanted. A warning says where it is over
        0.05. The `inputs` are in the order of their shares.

    Raises:
        FileNotFoundError, FileExistsError: As `average_checkpoints` does.
        TypeError, ValueError: As `average_checkpoints` does; if a snapshot was
            not written inside `averaged_weights` of a `PowerFunctionAverage`
            and its width and count are not given. Nothing has been written
            then.

    References:
        Karras et al. 2024, Analyzing and Improving the Training Dynamics of
        Diffusion Models, section 3.2 and appendix C, equation 151 and
        algorithm 3, https://arxiv.org/abs/2312.02696.
    """
    gamma = gamma_of("relative_width", relative_width)
    found = paths.resolved(snapshots, "snapshots")
    output = paths.checked_output(output, found)
    if snapshot_widths is None and snapshot_n_models is None:
        read = [_width_and_n_models(path) for path in found]
        snapshot_widths, snapshot_n_models = zip(*read)
    one_each = functools.partial(
        checks.one_each, len(found), "numbers, one for each snapshot"
    )
    at_least_1 = functools.partial(checks.integer, at_least=1)
    gammas = one_each("snapshot_widths", snapshot_widths, gamma_of)
    n_models = one_each("snapshot_n_models", snapshot_n_models, at_least_1)
    shares, error = _shares(gammas, n_models, gamma)
    # From the largest share on, all sums are over 0: no c divides by 0.
    order = sorted(range(len(found)), key=lambda i: -shares[i])
    sums = np.cumsum([shares[i] for i in order])
    latest = max(range(len(found)), key=lambda i: (n_models[i], i))
    report = weighted_mean.merge(
        [found[i] for i in order],
        output,
        [float(shares[i] / total) for i, total in zip(order, sums)],
        optimizer_slots=optimizer_slots,
        from_newest=weighted_mean.patterns(from_newest),
        dry_run=dry_run,
        progress=progress,
        about={"relative_width": float(relative_width), "profile_error": error},
        argument="snapshots",
        newest=found[latest],
        averages_batch_norm=False,
    )
    if error > _MAX_PROFILE_ERROR:
        warnings.warn(
            "These snapshots give the profile of `relative_width`="
            f"{relative_width:g} to within {error:.0%} only. Take a width "
            "nearer to theirs, or more snapshots.",
            stacklevel=2,
        )
    if not dry_run:
        weighted_mean.warn(report)
    return report


def _width_and_n_models(path: str) -> tuple[float, int]:
    """Returns the width and count of the average that a snapshot holds."""
    checkpoint = weighted_mean.opened(path, "snapshots")
    held = [each for each in checkpoint.saved_averages() if each.swapped]
    widths = [average.layout.get("relative_width") for average in held]
    if len(widths) != 1 or widths[0] is None:
        raise checks.must(
            "snapshots",
            "be checkpoints written inside `averaged_weights` of a "
            "`PowerFunctionAverage` that is in them, or `snapshot_widths` and "
            "`snapshot_n_models` must be given",
            f"'{path}'",
        )
    return widths[0], held[0].n_models


def _shares(
    gammas: list[float], n_models: list[int], gamma: float
) -> tuple[np.ndarray, float]:
    """Returns the share of each snapshot, and the relative profile error.

    Profiles have the exponents `gammas`, and end at `n_models`. The one wanted
    has the exponent `gamma`, and ends with the last of them.
    """
    ends, exponents = np.divide(n_models, max(n_models)), np.array(gammas)
    products = _products(ends[:, None], exponents[:, None], ends, exponents)
    wanted = _products(ends, exponents, 1.0, gamma)
    # Lagrange's equations, with profiles of norm 1, which rounding suits best.
    # Their rank falls short where snapshots are alike.
    scale = 1.0 / np.sqrt(products.diagonal())
    system = np.zeros([len(ends) + 1, len(ends) + 1])
    system[:-1, :-1] = products * scale * scale[:, None]
    system[-1, :-1] = system[:-1, -1] = scale
    solution, *_ = np.linalg.lstsq(system, [*wanted * scale, 1.0], rcond=None)
    shares = solution[:-1] * scale
    norm = _products(1.0, gamma, 1.0, gamma)
    distance = shares @ products @ shares - 2.0 * shares @ wanted + norm
    return shares, float(np.sqrt(max(distance, 0.0) / norm))


def _products(end: Any, gamma: Any, other_end: Any, other_gamma: Any) -> Any:
    """Returns the integrals of products of profiles.

    A profile is (gamma + 1) * t^gamma / end^(gamma + 1) for t from 0 to `end`.
    """
    first = np.minimum(end, other_end)
    exponent = np.where(end < other_end, other_gamma, gamma)
    last = np.maximum(end, other_end)
    scale = (gamma + 1.0) * (other_gamma + 1.0) / (gamma + other_gamma + 1.0)
    return scale * (first / last) ** exponent / last
