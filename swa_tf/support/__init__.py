"""TensorFlow and Keras, hidden: what every other room may use."""

from swa_tf.support import (
    checks,
    compat,
    model_parts,
    parameter_names,
    progress,
    variables,
    whole_files,
)

__all__ = [
    "checks",
    "compat",
    "model_parts",
    "parameter_names",
    "progress",
    "variables",
    "whole_files",
]
