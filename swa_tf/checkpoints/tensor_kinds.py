"""Tells weights from all else by names and shapes, where a file does not.

What is a mere guess is reported, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from swa_tf.checkpoints.checkpoint import Kinds, Tensor

# Floats of these names count, steer or judge the training.
_STATE = re.compile(
    r"(^|[/_])(steps?|epochs?|iter(ations?)?|count(s|er)?|learning_rate|lr"
    r"|beta_?\d_power(_\d+)?|loss_scale|loss|acc|accuracy|error|metric|score"
    r"|best|best_[^/]*|total|seen|tokens|time|elapsed|patience|f1|auc|mae|mse)$"
)
_STATISTIC = re.compile(r"(^|/)moving_(mean|variance)(:0|/|$)")

# Of name-based checkpoints of TensorFlow.
_NAMES = "Adam|AdamW|Adamax|Nadam|RMSProp|Adagrad|Adadelta|Ftrl|LAMB|Lion"
_SLOT = re.compile(
    rf"/(?:{_NAMES}|Momentum|MomentumW|adam_[mv]|m|v|vhat|rms|mg|accumulator"
    r"|linear|StochasticWeightAveraging)(?:_\d+)?$",
    re.IGNORECASE,
)
_POWER = re.compile(r"(^|/)beta\d_power(_\d+)?$")
_OPTIMIZER = re.compile(
    rf"^(?:training/)?(?:{_NAMES}|SGD|SGDW|Adafactor)(?:_\d+)?/",
    re.IGNORECASE,
)

# Of Keras's files: optimizers; metrics, by attribute or class; vocabularies.
_KERAS_OPTIMIZER = re.compile("optimizer(_weights)?(/|$)")
_KERAS_STATE = re.compile(
    r"(^|/)(_?metrics|\w*(metric|tracker|accuracy|precision|recall|auc"
    r"|io_u|f1_score)s?(_\d+)?)/(.*/)?vars/\d+$|/vars/idf_weights$"
)
_KERAS_STATE_FOR_SURE = re.compile("metrics/|.*idf_weights$")
_STEPS = [Tensor((), np.dtype(name)) for name in ("int32", "int64")]


def is_state(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is called as what counts, steers or judges."""
    is_number = tensor.shape == () and tensor.is_float
    return is_number and _STATE.search(name) is not None


def statistics(tensors: Mapping[str, Tensor]) -> set[str]:
    """Returns the keys of batch-norm statistics that are called so."""
    return set(filter(_STATISTIC.search, tensors))


def of_v1(tensors: Mapping[str, Tensor]) -> tuple[set[str], set[str]]:
    """Returns the slots and the state in a name-based checkpoint.

    A slot is `<variable>/<slot>`, or lies below the name of an optimizer. The
    state is the powers of Adam and the values of hash tables.
    """
    slots = set()
    for key, tensor in tensors.items():
        suffix = _SLOT.search(key)
        owner = tensors.get(key[: suffix.start()]) if suffix else None
        if (owner and owner.shape == tensor.shape) or (
            tensor.shape and _OPTIMIZER.match(key)
        ):
            slots.add(key)
    tables = (key[:-5] for key in tensors if key.endswith("-keys"))
    state = {f"{each}-values" for each in tables} & tensors.keys()
    if slots:
        state.update(filter(_POWER.search, tensors))
    return slots, state


def of_keras(tensors: Mapping[str, Tensor]) -> Kinds:
    """Returns what the tensors of a file of Keras are."""
    named = set(filter(_KERAS_OPTIMIZER.match, tensors))
    optimizers = _optimizers(tensors) - named
    slots = named | optimizers
    state = set(filter(_KERAS_STATE.search, tensors)) - slots
    guessed = {k for k in state if not _KERAS_STATE_FOR_SURE.match(k)}
    batch_norm = _batch_norm(tensors) - slots - state
    return Kinds(slots, state, optimizers | guessed, batch_norm)


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Returns the keys such as `layers/dense/vars/0`, in order, by group."""
    groups: dict[str, list[str]] = {}
    for key in sorted(tensors, key=lambda key: (len(key), key)):
        group, _, number = key.rpartition("/")
        if group.split("/")[-1] == "vars" and number.isdigit():
            groups.setdefault(group, []).append(key)
    return groups


def _optimizers(tensors: Mapping[str, Tensor]) -> set[str]:
    """Returns the keys that look like an optimizer's, anywhere in a model.

    They begin with an integer; others are scalars or have a weight's shape.
    """
    groups = _groups(tensors)
    counted = {
        group
        for group, keys in groups.items()
        if tensors[keys[0]] in _STEPS
        and any(tensors[key].is_float for key in keys)
    }
    shapes: set[tuple[int, ...]] = {()}
    for group in groups.keys() - counted:
        for shape in {tensors[key].shape for key in groups[group]}:
            shapes.add(shape)
            axes = range(len(shape))
            shapes.update(shape[:axis] + shape[axis + 1 :] for axis in axes)
    return {
        key
        for group in counted
        if {tensors[key].shape for key in groups[group]} <= shapes
        for key in groups[group]
    }


def _batch_norm(tensors: Mapping[str, Tensor]) -> set[str]:
    """Returns the keys of the batch-norm statistics.

    Older files name them. In newer ones they are the last two `vars` of a
    layer that has four vectors of one length, or that is called `batch_norm`.
    """
    found = statistics(tensors)
    for layer, keys in _groups(tensors).items():
        shapes = {tensors[key].shape for key in keys}
        alike = len(shapes) == 1 and len(*shapes) == 1
        if alike and (len(keys) == 4 or "batch_norm" in layer):
            found |= set(keys[-2:])
    return found
