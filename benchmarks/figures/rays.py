"""Figure 3: loss along random rays from the average and the decayed weights.

A direction is drawn from a normal distribution, and each of its filters is
scaled to the norm of the filter of the weights (Li et al. 2018, section 4):

    d_ij <- d_ij / |d_ij| * |w_ij|

So a step of length t changes every filter by the share t of its norm, and two
solutions whose weights are of other sizes can be compared. What is no filter,
the scales and offsets of batch norm and the biases, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.figures import drawing
from benchmarks.figures.saved_run import Meter, SavedRun, Weights, sample

_CENTRES = {
    "swa": "SWA",
    "decayed": "decayed to zero",
}
_MEASURES = {
    "train": ("loss", "training loss (nats)"),
    "test": ("loss", "test loss (nats)"),
    "test_error": ("error", "test error (%)"),
}


def direction(weights: Sequence[np.ndarray], seed: Sequence[int]) -> Weights:
    """Returns a random direction, each filter as long as that of the weights.

    Args:
        weights: Kernels [..., in, out], of which [..., i] is filter i; what
            has one axis or none gets zeros.
        seed: Of the direction, before it is scaled.

    References:
        Li et al. 2018, Visualizing the Loss Landscape of Neural Nets,
        https://arxiv.org/abs/1712.09913, section 4.
    """
    random = np.random.default_rng(list(seed))
    result = []
    for weight in weights:
        if weight.ndim < 2:
            result.append(np.zeros(weight.shape))
            continue
        drawn = random.standard_normal(weight.shape)
        axes = tuple(range(weight.ndim - 1))
        norm = np.sqrt(np.sum(weight.astype(np.float64) ** 2, axis=axes))
        result.append(drawn / np.sqrt(np.sum(drawn**2, axis=axes)) * norm)
    return result


def compute(
    run: SavedRun,
    rays: int,
    points: int,
    length: float,
    samples: dict[str, int],
    seed: int,
) -> dict[str, Any]:
    """Measures both solutions along the same random rays.

    Args:
        run: A run whose weights were kept, with the branch that decays.
        rays: Their number.
        points: Points on a ray, without its start.
        length: The distance of the last point: 1 changes each filter by as
            much as it is long.
        samples: The number of images for `refit`, `train` and `test`.
        seed: Of the directions, and of the choice of the images.
    """
    meter = Meter(
        run,
        sample(run.splits.train, samples["refit"], seed),
        {
            "train": sample(run.splits.train, samples["train"], seed),
            "test": sample(run.splits.test, samples["test"], seed),
        },
    )
    distances = np.linspace(0.0, length, points + 1)
    centres = {name: run.weights(name) for name in _CENTRES}
    found: dict[str, Any] = {}
    total = len(centres) * (1 + rays * points)
    with tqdm(total=total, desc="rays", unit="point") as progress:
        for name, centre in centres.items():
            start = meter(centre)
            progress.update()
            along = []
            for ray in range(rays):
                step = direction(centre, (seed, ray))
                figures = [start]
                for t in distances[1:]:
                    moved = [w + t * d for w, d in zip(centre, step)]
                    figures.append(meter(moved))
                    progress.update()
                along.append(figures)
            found[name] = {
                key: [
                    [f[key.split("_")[0]][measure] for f in figures]
                    for figures in along
                ]
                for key, (measure, _) in _MEASURES.items()
            }
    return {
        "flags": run.flags,
        "samples": samples,
        "seed": seed,
        "distances": distances.tolist(),
        "centres": found,
    }


def draw(contents: dict[str, Any]) -> Figure:
    """Draws the mean over the rays, and the band from least to largest."""
    rays = len(contents["centres"]["swa"]["train"])
    figure = drawing.new(
        f"{drawing.describe(contents['flags'])}\n"
        f"mean of {rays} random rays, band from the least to the largest",
        width=11.0,
    )
    panels = figure.subplots(1, 3)
    for axes, (key, (_, title)) in zip(panels, _MEASURES.items()):
        for color, (name, label) in zip(("C2", "C0"), _CENTRES.items()):
            values = contents["centres"][name][key]
            drawing.band(
                axes,
                contents["distances"],
                drawing.over_draws(list(zip(*values))),
                color=color,
                label=f"from {label}, refit",
            )
        axes.set_title(title, fontsize="small")
        axes.set_xlabel("distance, in norms of each filter")
        axes.grid(alpha=0.3)
    drawing.legend(figure, *panels[0].get_legend_handles_labels(), columns=2)
    return figure
