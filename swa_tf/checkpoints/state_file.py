"""TensorFlow's file `checkpoint`, which says which checkpoint is the latest."""

from __future__ import annotations

import tensorflow as tf
from google.protobuf import text_format

from swa_tf.checkpoints import paths
from swa_tf.support import whole_files

NAME = "checkpoint"


def with_latest(output: str) -> str | None:
    """Returns the file's new text, in which an average is the latest.

    The average, of TensorFlow's form, is not yet at its path `output`. None
    where the file must stay as it is: a training run that looks for its latest
    checkpoint must not go on from an average, nor delete it as an old one. So
    there must be nothing but averages in the folder, each with its report.
    """
    folder, name = whole_files.split(output)
    there = whole_files.names_in(folder)
    listed = [n for n in paths.listed(folder) if f"{n}.index" in there]
    if NAME in there and not listed:  # it is of others, or cannot be read
        return None
    if any(f"{other}.json" not in there for other in paths.prefixes(there)):
        return None
    state = tf.compat.v1.train.generate_checkpoint_state_proto(
        ".", name, [*listed, name]
    )
    return text_format.MessageToString(state)
