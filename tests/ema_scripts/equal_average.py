"""What `StochasticWeightAveraging` does otherwise in the same scripts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Otherwise(NamedTuple):
    """The outcome of a script with `StochasticWeightAveraging`, if it differs.

    Attributes:
        says: The cell of the table.
        why: The next cell.
        gives: What the script returns, worked out by hand.
        raises: The error instead, and what it says.
    """

    says: str
    why: str
    gives: Any = None
    raises: tuple[type[Exception], str] | None = None


def _long_mean():
    rng = np.random.default_rng(0)
    seen = [1.0 + rng.normal(size=50).astype(np.float32) for _ in range(1000)]
    return np.sum(seen, axis=0, dtype=np.float64) / 1001  # and the zeros


MEAN = "the mean"
NO_DECAY = "no decay"
ONE_MEAN = "one mean, of the same models for all"
NO_ZERO = "its first value is the first tensor"
OF_MODELS = "only models are in a mean"
COUNT = "saved with the averages, to go on"
STEPS = [[0.75], [0.75]]  # of a replica each: 1.0 and 0.5
OF_SWA = {
    "eager_numbers": Otherwise(
        f"same, then {MEAN}",
        NO_DECAY,
        [1.0, [2.0, -2.0], 1.5, [2.5, -1.5], 8 / 3, [10 / 3, -1.0]],
    ),
    "function_numbers": Otherwise(
        "the first weight averaged", OF_MODELS, [3.5, 1.5]
    ),
    "graph_numbers": Otherwise(
        "same, until the first update replaces it",
        OF_MODELS,
        [
            [[10.0, 20.0], [0.0, 0.0]],
            [[30.0, 0.0], [60.0, 0.0]],
            [[12.5, 2.5], [25.0, 5.0]],
        ],
    ),
    "long_numbers": Otherwise(MEAN, NO_DECAY, _long_mean()),
    "float64_numbers": Otherwise(
        "so is the average", NO_DECAY, ["float64", [-2.0] * 3]
    ),
    "num_updates_as_an_integer": Otherwise(MEAN, NO_DECAY, [1.5] * 4),
    "num_updates_as_a_variable": Otherwise(MEAN, NO_DECAY, [2.5] * 3),
    "num_updates_as_a_global_step": Otherwise(MEAN, NO_DECAY, [5.0] * 6),
    "decay_as_a_variable": Otherwise(MEAN, NO_DECAY, [1.75, 2.0]),
    "decay_as_a_tensor": Otherwise(MEAN, NO_DECAY, [1.5, 2.0, 2.0]),
    "zero_debias_of_tensors": Otherwise(
        "nothing to divide by",
        NO_ZERO,
        [
            *([0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [1.0, 2.0], [3.0, 1.5]),
            *([1.0, 2.0], [7 / 3, 5 / 3]),
        ]
        * 2,
    ),
    "tensors_of_unknown_shape": Otherwise(
        "averaged, from the first tensor", OF_MODELS, [[None, 2], [[1, 1]] * 3]
    ),
    "apply_again_in_a_graph": Otherwise(
        f"same, of {MEAN}",
        NO_DECAY,
        [
            [5.0, 5.0, 5.0],
            ["ExponentialMovingAverage", "ExponentialMovingAverage_1"],
        ],
    ),
    "variables_that_join": Otherwise(
        "`ValueError`: those of the first `apply`",
        ONE_MEAN,
        raises=(ValueError, "no others"),
    ),
    "variables_that_join_a_graph": Otherwise(
        "`ValueError`: those of the first `apply`",
        ONE_MEAN,
        raises=(ValueError, "no others"),
    ),
    "assigned_averages": Otherwise(
        "same, with the weight of the mean so far", NO_DECAY, 6.0
    ),
    "zero_debias_names": Otherwise(
        "the average alone",
        NO_ZERO,
        [
            ["scope/scope/tensor/foo"],
            ["scope/foo/n_models:0", "scope/scope/tensor/foo:0"],
        ],
    ),
    "two_averages": Otherwise(
        "same, with a count of models each",
        COUNT,
        [
            "v/ExponentialMovingAverage_1",
            "v/ExponentialMovingAverage",
            "v/ExponentialMovingAverage_1",
            [
                "ExponentialMovingAverage/n_models",
                "v/ExponentialMovingAverage",
                "v/ExponentialMovingAverage_1",
            ],
        ],
    ),
    "reuse_auto": Otherwise(
        "same, with a count of models each",
        COUNT,
        [
            ["s/s/v/ExponentialMovingAverage:0"] * 2,
            [
                "s/v:0",
                "s/ExponentialMovingAverage/n_models:0",
                "s/s/v/ExponentialMovingAverage:0",
                "s_1/ExponentialMovingAverage/n_models:0",
            ],
        ],
    ),
    "collections": Otherwise(
        "same; the count of models is global, too",
        COUNT,
        [
            [
                "v:0",
                "ExponentialMovingAverage/n_models:0",
                "v/ExponentialMovingAverage:0",
                "add/ExponentialMovingAverage:0",
            ],
            ["v:0"],
            ["v:0"],
        ],
    ),
    "imported_ops": Otherwise(f"same, of {MEAN}", NO_DECAY, [5.0, ["v:0"]]),
    "control_dependencies": Otherwise(
        f"same, of {MEAN}", NO_DECAY, [[10.0], [20.0], 1]
    ),
    "inside_control_flow": Otherwise(f"same, of {MEAN}", NO_DECAY, [1.0, 2.0]),
    "loops": Otherwise(f"same, of {MEAN}", NO_DECAY, [1.5, 2.0]),
    "compiled_functions": Otherwise(f"same, of {MEAN}", NO_DECAY, [3.5, 1.5]),
    "session_savers": Otherwise(
        "same, and the count of models",
        COUNT,
        [
            [
                "ExponentialMovingAverage/n_models",
                "v",
                "v/ExponentialMovingAverage",
            ],
            5.0,
        ],
    ),
    "saved_models": Otherwise(f"same, of {MEAN}", NO_DECAY, [[2.0], [3.0]]),
    "replica_context": Otherwise(
        f"same, of {MEAN}", NO_DECAY, [STEPS, STEPS, STEPS[:1], STEPS[:1]]
    ),
    "cross_replica_context": Otherwise(
        f"same, of {MEAN}", NO_DECAY, [STEPS, STEPS, STEPS[:1], STEPS[:1]]
    ),
    "replica_context_of_a_graph": Otherwise(
        f"same, of {MEAN}",
        NO_DECAY,
        [
            *("w/ExponentialMovingAverage:0", STEPS),
            *("w/ExponentialMovingAverage:0", STEPS[:1]),
        ],
    ),
    "cross_replica_context_of_a_graph": Otherwise(
        f"same, of {MEAN}",
        NO_DECAY,
        [
            *("w/ExponentialMovingAverage:0", STEPS),
            *("w/ExponentialMovingAverage:0", STEPS[:1]),
        ],
    ),
}
