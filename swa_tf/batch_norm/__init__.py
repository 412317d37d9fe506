"""Batch-norm statistics for weights that no training step has seen."""

from swa_tf.batch_norm.moving_free_layer import MovingFreeBatchNormalization
from swa_tf.batch_norm.refit import (
    ArgumentNames,
    BatchNormRefit,
    refit_batch_norm,
)

__all__ = [
    "ArgumentNames",
    "BatchNormRefit",
    "MovingFreeBatchNormalization",
    "refit_batch_norm",
]
