"""Batch-norm statistics for weights that no training step has seen.

The moving statistics of batch normalization describe the activations of the
weights that were trained. Averaged weights have other activations, and no
statistics: they are computed from forward passes over the data.
"""

from swa_tf.batch_norm.layer import MovingFreeBatchNormalization
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
