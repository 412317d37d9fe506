"""Puts averages into a model, and the trained weights back."""

from swa_tf.swapping.averaged_weights import averaged_weights, swapped_in
from swa_tf.swapping.backup import BackupVariables, assign_averages, averages_of

__all__ = [
    "BackupVariables",
    "assign_averages",
    "averaged_weights",
    "averages_of",
    "swapped_in",
]
