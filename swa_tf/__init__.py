"""Weight averaging for TensorFlow models, and all that belongs to it.

    weights -> averages -> swap in -> refit batch norm -> evaluate -> swap back

`StochasticWeightAveraging` averages; `averaged_weights` swaps the averages in
for an evaluation; `refit_batch_norm` computes batch-norm statistics anew. See
the README for a training loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swa_tf import schedules
from swa_tf.averaged_model import AveragedModel
from swa_tf.averaging import (
    AveragingSchedule,
    ExponentialMovingAverage,
    PowerFunctionAverage,
    StochasticWeightAveraging,
    WeightAverage,
    scaled_decay,
)
from swa_tf.batch_norm import (
    BatchNormRefit,
    MovingFreeBatchNormalization,
    refit_batch_norm,
)
from swa_tf.callbacks import AveragedModelCheckpoint, SWACallback
from swa_tf.parameters import (
    assign_parameters,
    average_parameters,
    copy_parameters,
)
from swa_tf.support import compat
from swa_tf.swag import (
    SWAGaussian,
    assign_sample,
    predict_samples,
    sampled_weights,
)
from swa_tf.swapping import BackupVariables, assign_averages, averaged_weights

if TYPE_CHECKING:  # imported on first use, by `__getattr__`
    from swa_tf import optimizers
    from swa_tf.checkpoints import (
        average_checkpoints,
        average_windows,
        checkpoints_in,
        greedy_soup,
        merge_averages,
        posthoc_average,
        soups,
    )

__version__ = "0.1.0"

__all__ = [
    "AveragedModel",
    "AveragedModelCheckpoint",
    "AveragingSchedule",
    "BackupVariables",
    "BatchNormRefit",
    "ExponentialMovingAverage",
    "MovingFreeBatchNormalization",
    "PowerFunctionAverage",
    "SWACallback",
    "SWAGaussian",
    "StochasticWeightAveraging",
    "WeightAverage",
    "__version__",
    "assign_averages",
    "assign_parameters",
    "assign_sample",
    "average_checkpoints",
    "average_parameters",
    "average_windows",
    "averaged_weights",
    "checkpoints_in",
    "copy_parameters",
    "greedy_soup",
    "merge_averages",
    "optimizers",
    "posthoc_average",
    "predict_samples",
    "refit_batch_norm",
    "sampled_weights",
    "scaled_decay",
    "schedules",
    "soups",
]

if compat.KERAS_3:
    # It loads what has been registered by then, and imports nothing itself.
    importlib.import_module("swa_tf.optimizers")


def __getattr__(name: str) -> Any:
    """Imports what needs TensorFlow Addons or h5py on first use."""
    if name in ("checkpoints", "optimizers"):
        return importlib.import_module(f"swa_tf.{name}")
    if name in __all__:
        return getattr(importlib.import_module("swa_tf.checkpoints"), name)
    raise AttributeError(f"module 'swa_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
