"""Averages of checkpoints: files in, one file out."""

from swa_tf.checkpoints import soups
from swa_tf.checkpoints.average import average_checkpoints, average_windows
from swa_tf.checkpoints.merge_workers import merge_averages
from swa_tf.checkpoints.paths import checkpoints_in, matching
from swa_tf.checkpoints.posthoc import posthoc_average
from swa_tf.checkpoints.soups import greedy_soup
from swa_tf.checkpoints.weighted_mean import warn

__all__ = [
    "average_checkpoints",
    "average_windows",
    "checkpoints_in",
    "greedy_soup",
    "matching",
    "merge_averages",
    "posthoc_average",
    "soups",
    "warn",
]
