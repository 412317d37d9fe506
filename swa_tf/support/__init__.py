"""TensorFlow and Keras, hidden: what every other room may use."""

from swa_tf.support import (
    checks,
    model_parts,
    parameter_names,
    stack,
    variables,
    whole_files,
)

__all__ = [
    "checks",
    "model_parts",
    "parameter_names",
    "stack",
    "variables",
    "whole_files",
]
