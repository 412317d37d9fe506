"""The command, versions and machine that measured figures depend on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping

import numpy as np


def stack() -> dict[str, str]:
    """Returns the names and versions of what the figures depend on."""
    import tensorflow as tf  # Not every process of a benchmark wants it.

    import swa_tf

    # Keras itself has no version number under `tf.keras` on every stack.
    package = tf.keras.layers.Layer.__module__.split(".")[0]
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        package: importlib.metadata.version(package),
        "numpy": np.__version__,
        "swa_tf": swa_tf.__version__,
    }
    for package in ("tensorflow_addons", "torch"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    return versions


def made_by(command: str, versions: Mapping[str, str], where: str) -> str:
    """Returns the paragraphs of Markdown that a page of results ends with.

    Args:
        command: What makes the same page again.
        versions: As `stack` returns them.
        where: The rest of the last sentence.
    """
    listed = ", ".join(f"{name} {v}" for name, v in versions.items())
    return f"Made by\n\n    {command}\n\nwith {listed}, {where}.\n"
