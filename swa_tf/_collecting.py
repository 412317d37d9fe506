"""Batch-norm layers that hand what they are given to somebody else."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

Normalize = Callable[[int, Any, Any, Any], Any]

_PATCHING = threading.RLock()


@contextlib.contextmanager
def collecting(
    layers: list[Any], kinds: tuple[type, ...], normalize: Normalize
) -> Iterator[None]:
    """While a graph is traced, lets `normalize` take the place of layers.

    It replaces `call` of the class that normalizes, which hands every other
    layer on to the original. So a subclass with a `call` of its own keeps it,
    and is met where it calls `super().call`. One thread at a time may do this.

    Args:
        layers: Those that are replaced.
        kinds: The classes whose `call` normalizes, and no user's.
        normalize: Given the number of the layer in `layers`, the layer, its
            inputs and its mask, the outputs.
    """
    with _PATCHING, _inlined_functions():
        classes = {_normalizing_class(layer, kinds) for layer in layers}
        originals = {each: vars(each)["call"] for each in classes}
        own = [layer for layer in layers if _holds_its_call(layer)]
        try:
            for layer in own:
                del layer.call
            for each, original in originals.items():
                each.call = _collecting_call(original, layers, normalize)
            yield
        finally:
            for each, original in originals.items():
                each.call = original
            for layer in own:
                layer.call = layer.call


def _holds_its_call(layer: Any) -> bool:
    """Whether its class's `call` is an attribute of the layer as well.

    Keras 2 leaves it there when it has written a SavedModel.
    """
    own = vars(layer).get("call")
    return getattr(own, "__func__", None) is type(layer).call


def _normalizing_class(layer: Any, kinds: tuple[type, ...]) -> Any:
    """The first class, from the layer's own up, that is not a user's."""
    known = next(each for each in type(layer).__mro__ if each in kinds)
    return next(each for each in known.__mro__ if "call" in vars(each))


def _collecting_call(
    original: Callable[..., Any], layers: list[Any], normalize: Normalize
) -> Callable[..., Any]:
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        # What runs eagerly meanwhile is another thread's.
        if id(layer) not in numbers or tf.executing_eagerly():
            return original(layer, *args, **kwargs)
        given = signature.bind(layer, *args, **kwargs).arguments
        return normalize(
            numbers[id(layer)], layer, given["inputs"], given.get("mask")
        )

    return tf.autograph.experimental.do_not_convert(call)


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
    """While a graph is traced, inlines every `tf.function` that it calls.

    One inside the model may have been traced before, with the layer's own
    `call` in it; and a trace of this pass must not be used after it.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
