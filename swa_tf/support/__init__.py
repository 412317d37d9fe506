"""TensorFlow and Keras, hidden: what every other room may use."""

from swa_tf.support import (
    atomic_files,
    checks,
    compat,
    model_parts,
    progress,
    variable_names,
    variables,
)

__all__ = [
    "atomic_files",
    "checks",
    "compat",
    "model_parts",
    "progress",
    "variable_names",
    "variables",
]
