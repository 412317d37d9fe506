"""Figure 2: the plane through three SGD iterates, with their average.

The plane is spanned as in Izmailov et al. 2018, section 3.2:

    u = w2 - w1        v = (w3 - w1) - <w3 - w1, u> / <u, u> * u
    P(x, y) = w1 + x * u / |u| + y * v / |v|
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.common.errors import BenchmarkError
from benchmarks.figures import drawing
from benchmarks.figures.saved_run import Meter, SavedRun, Weights, sample

_LEVELS = 16
_SHOWN_PERCENT = 80.0  # the levels end there: the corners are far up
_LABELS = {
    "iterate_1": "first iterate",
    "iterate_2": "second",
    "iterate_3": "third",
    "average": "average of the three",
}


class Plane:
    """The plane through three points, with coordinates in it.

    Args:
        first: The weights at (0, 0).
        second: The weights that lie in the direction of x.
        third: The weights that complete the plane, at y > 0.

    Raises:
        BenchmarkError: If the three lie on a line.

    References:
        Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2.
    """

    def __init__(self, first: Weights, second: Weights, third: Weights) -> None:
        self._shapes = [w.shape for w in first]
        self._origin = _flat(first)
        u = _flat(second) - self._origin
        v = _flat(third) - self._origin
        length = np.linalg.norm(v)
        u = _unit(u, np.linalg.norm(u))
        v = _unit(v - np.dot(v, u) * u, length)
        self._basis = np.stack([u, v])

    def coordinates(self, weights: Weights) -> tuple[np.ndarray, float]:
        """Returns where weights are in the plane, and how far from it.

        Returns:
            The coordinates [2] of the nearest point of the plane, and the
            distance from that point.
        """
        difference = _flat(weights) - self._origin
        at = self._basis @ difference
        return at, float(np.linalg.norm(difference - at @ self._basis))

    def weights(self, x: float, y: float) -> Weights:
        """Returns the weights at a point of the plane."""
        flat = self._origin + np.array([x, y]) @ self._basis
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        parts = np.split(flat, ends[:-1])
        return [p.reshape(shape) for p, shape in zip(parts, self._shapes)]


def compute(
    run: SavedRun,
    epochs: Sequence[int],
    points: int,
    margin: float,
    samples: dict[str, int],
    seed: int,
) -> dict[str, Any]:
    """Measures a grid of the plane, and the points that span it.

    Args:
        run: A run whose weights were kept.
        epochs: Three of its epochs; none for the first kept, the one in the
            middle and the last.
        points: Grid points in each direction, >= 2.
        margin: How far the grid goes beyond the iterates, as a share of
            their width and height.
        samples: The number of images for `refit`, `train` and `test`.
        seed: Of the choice of the images.

    Raises:
        BenchmarkError: If the epochs are not three that were kept.
    """
    epochs = _three(run, epochs)
    iterates = [run.epoch(epoch) for epoch in epochs]
    plane = Plane(*iterates)
    average = [np.mean(w, axis=0, dtype=np.float64) for w in zip(*iterates)]
    train = sample(run.splits.train, samples["train"], seed)
    meter = Meter(
        run,
        sample(run.splits.train, samples["refit"], seed),
        {
            "train": train,
            "test": sample(run.splits.test, samples["test"], seed),
        },
    )
    marked = dict(zip(_LABELS, [*iterates, average]))
    # The average of the whole run is beside the plane: only its foot is in it.
    marked["swa"] = run.weights("swa")
    figures: dict[str, Any] = {}
    for name, weights in marked.items():
        at, distance = plane.coordinates(weights)
        figures[name] = {
            "at": at.tolist(),
            "distance": distance,
            **meter(weights),
        }
    corners = np.array([figures[name]["at"] for name in _LABELS])
    low, high = corners.min(axis=0), corners.max(axis=0)
    beyond = margin * (high - low)
    x, y = (
        np.linspace(low[i] - beyond[i], high[i] + beyond[i], points)
        for i in range(2)
    )
    grid: dict[str, Any] = {"train_loss": [], "test_error": []}
    with tqdm(total=points * points, desc="plane", unit="point") as progress:
        for b in y:
            row = []
            for a in x:
                row.append(meter(plane.weights(a, b)))
                progress.update()
            grid["train_loss"].append([f["train"]["loss"] for f in row])
            grid["test_error"].append([f["test"]["error"] for f in row])
    return {
        "flags": run.flags,
        "epochs": list(epochs),
        "samples": samples,
        "seed": seed,
        "marked": figures,
        "x": x.tolist(),
        "y": y.tolist(),
        **grid,
    }


def draw(contents: dict[str, Any]) -> Figure:
    """Draws the two surfaces as contours, lines of equal height."""
    epochs = ", ".join(str(epoch) for epoch in contents["epochs"])
    figure = drawing.new(
        f"{drawing.describe(contents['flags'])}\n"
        f"the plane through the weights of epochs {epochs}",
        width=10.0,
    )
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, key, title in zip(
        panels,
        ("train_loss", "test_error"),
        ("training loss (nats)", "test error (%)"),
    ):
        values = np.array(contents[key])
        top = np.percentile(values, _SHOWN_PERCENT)
        bottom = values.min()
        # Close together at the bottom, where the points of interest lie.
        rise = np.linspace(0.0, 1.0, _LEVELS) ** 2
        levels = bottom + max(top - bottom, 1e-6) * rise
        filled = axes.contourf(
            contents["x"],
            contents["y"],
            values,
            levels=levels,
            extend="max",
            cmap="viridis_r",
            norm=BoundaryNorm(levels, 256, extend="max"),
        )
        figure.colorbar(
            filled, ax=axes, label=title, ticks=levels[::3], format="%.2g"
        )
        for name, label in _LABELS.items():
            axes.plot(
                *contents["marked"][name]["at"],
                marker="*" if name == "average" else "o",
                markersize=14 if name == "average" else 7,
                color="C3" if name == "average" else "white",
                markeredgecolor="black",
                linestyle="none",
                label=label,
            )
            if name != "average":
                axes.annotate(
                    str(contents["epochs"][int(name[-1]) - 1]),
                    contents["marked"][name]["at"],
                    xytext=(6, 6),
                    textcoords="offset points",
                )
        axes.set_aspect("equal")
        axes.set_xlabel("distance along the first edge")
    panels[0].set_ylabel("distance across it")
    handles, labels = panels[0].get_legend_handles_labels()
    shown = ["weights at the end of an epoch", labels[-1]]
    drawing.legend(figure, handles[2:], shown, columns=2)
    return figure


def _three(run: SavedRun, epochs: Sequence[int]) -> Sequence[int]:
    kept = run.epochs()
    if not epochs and len(kept) >= 3:
        return [kept[0], kept[(len(kept) - 1) // 2], kept[-1]]
    if len(set(epochs)) != 3 or not set(epochs) <= set(kept):
        raise BenchmarkError(
            "`--plane_epochs` must be three epochs whose weights were kept, "
            f"of {kept}. Received: --plane_epochs={list(epochs)}"
        )
    return epochs


def _flat(weights: Weights) -> np.ndarray:
    return np.concatenate([w.ravel().astype(np.float64) for w in weights])


def _unit(vector: np.ndarray, scale: float) -> np.ndarray:
    """Returns a vector of length 1; `scale` says what length is none."""
    length = np.linalg.norm(vector)
    if length <= 1e-6 * scale:
        raise BenchmarkError(
            "`--plane_epochs` must be three epochs whose weights span a plane. "
            "Received: three points on a line"
        )
    return vector / length
