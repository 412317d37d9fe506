"""Weights of given shapes, and the shapes of models by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.common.errors import BenchmarkError
from benchmarks.common.resnet import ResNet

Shapes = Sequence[Sequence[int]]
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


class Weights:
    """Weights of given shapes, and what else a way finds there in training."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    @functools.cached_property
    def keras_variables(self) -> list[Any]:
        """Trainable variables of Keras."""
        # Ones, since random numbers leave memory behind that a way would take
        # before it asks for more.
        layer = tf.keras.layers.Layer()
        return [
            layer.add_weight(name=f"w{i}", shape=shape, initializer="ones")
            for i, shape in enumerate(self._shapes)
        ]

    @functools.cached_property
    def variables(self) -> list[tf.Variable]:
        """The same, as the variables of TensorFlow that they are."""
        return as_tensorflow(self.keras_variables)

    @functools.cached_property
    def gradients(self) -> list[tf.Tensor]:
        """A gradient of each."""
        return [tf.fill(shape, 1e-3) for shape in self._shapes]

    @functools.cached_property
    def torch_module(self) -> Any:
        """A module of torch with parameters of these shapes."""
        import torch

        parameters = [torch.ones(tuple(s)) for s in self._shapes]
        return torch.nn.ParameterList(map(torch.nn.Parameter, parameters))


def as_tensorflow(keras_variables: Sequence[Any]) -> list[tf.Variable]:
    """Returns the variables of TensorFlow that variables of a Keras are."""
    return [
        w if isinstance(w, tf.Variable) else w.value for w in keras_variables
    ]


def shapes(model: str) -> list[tuple[int, ...]]:
    """Returns the shapes of the parameters of a model, by its name.

    >>> shapes("2x1K")
    [(1000,), (1000,)]

    Args:
        model: "resnet34", of `benchmarks.common.resnet` at its full width of
            64; or "<number of variables>x<size of each>", with K, M or B.

    Raises:
        ValueError: If it is neither.
    """
    if model == "resnet34":
        network = ResNet(34, width=64)
        network(tf.zeros([1, 32, 32, 3]))
        return [tuple(v.shape) for v in network.trainable_variables]
    count, _, size = model.partition("x")
    try:
        return [(number(size),)] * number(count)
    except ValueError as error:
        raise ValueError(
            "`model` must be resnet34 or, for example, 4x25M. "
            f"Received: model={model!r}"
        ) from error


def of_flag(flag: str, model: str) -> Shapes:
    """Returns the shapes of a flag's model; the error names the flag."""
    try:
        return shapes(model)
    except ValueError as error:
        raise BenchmarkError(f"`--{flag}`: {error}") from error


def number(text: str) -> int:
    """Parses a number > 0, with K, M or B behind it or not.

    >>> number("25M"), number("64")
    (25000000, 64)

    Raises:
        ValueError: If it is none.
    """
    parsed = re.fullmatch(r"([1-9]\d*)([KMB]?)", text)
    if not parsed:
        raise ValueError(
            "it must be a number > 0 such as 64, 10K, 25M or 1B. "
            f"Received: {text!r}"
        )
    digits, unit = parsed.groups()
    return int(digits) * _UNITS[unit]


def parameters(model_shapes: Shapes) -> int:
    """Returns the number of parameters in variables of these shapes."""
    return sum(int(np.prod(shape)) for shape in model_shapes)
