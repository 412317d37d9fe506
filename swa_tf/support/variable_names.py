"""Names variables by paths of attributes, the same in every process."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from swa_tf.support import checks, compat, model_parts


def named_variables(target: Any) -> dict[str, Any]:
    """Returns the `tf.Variable`s of `target`, each once, by unique names.

    They come in the order of `target.weights`; an optimizer's, the shortest
    path first. A layer of a functional or sequential model has the name that
    the user gave it, or else its class and its number in `model.layers`.
    """
    if isinstance(target, compat.optimizers()):
        paths = _paths(model_parts.reached(target, _optimizer_edges))
        return _unique(paths, paths)
    kinds = (tf.keras.layers.Layer, tf.Module)
    others = model_parts.NOT_OF_A_MODEL
    if not isinstance(target, kinds) or isinstance(target, others):
        wanted = "a Keras model, layer or optimizer or a `tf.Module`"
        raise checks.wrong("target", wanted, target, TypeError)
    try:
        weights = [variable.ref() for variable in model_parts.weights(target)]
    except ValueError:  # Keras 2, of a model that is not built
        weights = []
    if not weights:
        wanted = "hold variables: call it on data, or its `build`, first"
        raise checks.must("target", wanted, f"{target!r} without variables")
    return _unique(_paths(model_parts.reached(target, _layer_edges)), weights)


def _paths(
    reached: Iterable[tuple[model_parts.Path, Any]],
) -> dict[Any, model_parts.Path]:
    """Returns the best path to each variable, by its `ref()`."""
    paths: dict[Any, model_parts.Path] = {}
    for path, part in reached:
        variable = compat.tf_variable(part)
        if isinstance(variable, tf.Variable):
            paths.setdefault(variable.ref(), path)
    return paths


def _unique(
    paths: dict[Any, model_parts.Path], weights: Iterable[Any]
) -> dict[str, Any]:
    """Joins the paths to names; numbers all but the first of equal names."""
    for ref in weights:
        if model_parts.NO_NAME in paths.get(ref, (model_parts.NO_NAME,)):
            variable = ref.deref()
            raise ValueError(
                "`target` must hold its layers and variables in attributes, "
                "lists or dictionaries, which have the same order in every "
                f"process. Received: '{compat.variable_name(variable)}' "
                f"of shape {variable.shape}, in a set or elsewhere"
            )
    names: dict[str, Any] = {}
    for ref, path in paths.items():
        names[_numbered("/".join(path), names)] = ref
    name_of = dict(zip(names.values(), names))
    return {name_of[ref]: ref.deref() for ref in weights}


def _numbered(name: str, taken: Iterable[str]) -> str:
    """Returns `name`, or the first of `name_1`, `name_2`, ... not taken."""
    others = (f"{name}_{i}" for i in itertools.count(1))
    return next(n for n in itertools.chain([name], others) if n not in taken)


def _layer_edges(part: Any) -> Iterator[model_parts.Edge]:
    """Yields what a part of a model holds; the layers of a model by name."""
    if isinstance(part, tf.keras.Model) and compat.is_functional(part):
        for name, layer in zip(_layer_names(part.layers), part.layers):
            yield name, layer, model_parts.PREFERRED
    yield from model_parts.edges(part)


def _optimizer_edges(part: Any) -> Iterator[model_parts.Edge]:
    """Yields what an optimizer, its lists and its loss scale hold."""
    if isinstance(part, model_parts.CONTAINERS):
        yield from model_parts.items(part)
    elif not isinstance(part, (tf.keras.layers.Layer, tf.Module)):
        for name, child in compat.optimizer_parts(part):
            yield model_parts.public(name), child, model_parts.PREFERRED
        if isinstance(part, compat.optimizers()):
            for name, slots in compat.optimizer_slots(part).items():
                yield name, slots, model_parts.LAST_RESORT


def _layer_names(layers: list[Any]) -> list[str]:
    """Returns the names of layers: the user's, or class and number."""
    taken = {layer.name for layer in layers if not _is_automatic(layer)}
    names = []
    for layer in layers:
        name = layer.name
        if _is_automatic(layer):
            name = _numbered(_snake_case(type(layer).__name__), taken)
            taken.add(name)
        names.append(name)
    return names


def _is_automatic(layer: Any) -> bool:
    """Whether Keras could have made the name of `layer` from its class."""
    kind = type(layer).__name__
    made_up = {_letters(kind), _letters(_snake_case(kind))}
    name = re.sub(r"^private__", "", layer.name)  # Keras 2, of `_Layer`
    names = {_letters(name), _letters(re.sub(r"_\d+$", "", name))}
    return not names.isdisjoint(made_up)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _snake_case(name: str) -> str:
    """`conv2d_transpose` of `Conv2DTranspose`, `model` of `Functional`."""
    if name == "Functional":
        return "model"  # its name in Keras 2
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name.lstrip("_"))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
