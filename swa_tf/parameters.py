"""Copies, assigns and averages parameters by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.averaging import rounding
from swa_tf.support import checks, compat, variable_names
from swa_tf.support import variables as variables_lib

_N_MODELS = "n_models"  # the key of the count beside the averages
_MAX_LISTED_PROBLEMS = 10


def copy_parameters(target: Any) -> dict[str, np.ndarray]:
    """Copies every parameter, by a name that is the same in every process.

    A name is the path of attributes to the parameter, `encoder/dense/kernel`.
    A layer of a functional or sequential model has its own name in it; if
    Keras made that name, its class and number: `dense/kernel`,
    `dense_1/kernel`. Later training does not change the copies.

    >>> layer = tf.keras.layers.Dense(1, kernel_initializer="ones")
    >>> layer.build([None, 2])
    >>> copies = swa_tf.copy_parameters(layer)
    >>> copies["kernel"].tolist(), copies["bias"].tolist()
    ([[1.0], [1.0]], [0.0])

    Args:
        target: A built Keras model or layer, a Keras or TensorFlow Addons
            optimizer, or a `tf.Module`. The parameters of a model are its
            weights, with batch-norm statistics, without optimizer and metrics.

    Returns:
        A dictionary from name to array, in the order of `target.weights`.

    Raises:
        TypeError: If `target` is none of these.
        ValueError: If it has no parameters (yet), or a set of several.
        RuntimeError: If called in a graph or `tf.function`.
    """
    variables = _named_variables(target, "copy_parameters")
    return {name: _array(v.read_value()) for name, v in variables.items()}


def assign_parameters(
    target: Any, dictionary: Mapping[str, Any], strict: bool = True
) -> list[str]:
    """Assigns the values of a dictionary to parameters: all, or none.

    >>> layer = tf.keras.layers.Dense(1)
    >>> layer.build([None, 2])
    >>> swa_tf.assign_parameters(layer, {"kernel": [[1.0], [2.0]], "bias": 0})
    ['kernel', 'bias']
    >>> layer.kernel.numpy().tolist()
    [[1.0], [2.0]]

    After assigning averages to a model with batch normalization, compute its
    statistics anew with `swa_tf.refit_batch_norm`.

    Args:
        target: As in `copy_parameters`.
        dictionary: A mapping from name to value: an array of the parameter's
            shape, or one number for all of its elements. Values are cast to
            the parameter's dtype if it can hold them: whole numbers in range
            for an integer parameter, real ones for a floating-point one. The
            key "n_models", the count of `average_parameters`, is ignored.
        strict: Whether every parameter must have a value. If not, parameters
            without one stay as they are.

    Returns:
        The names of the parameters assigned, in the order of `target.weights`.

    Raises:
        TypeError: If `target` is none of these, or `dictionary` no mapping.
        ValueError: If a name is no parameter of `target`, if one is missing
            and `strict`, or if a value does not fit. The error names them all.
            Nothing has changed then, nor if assigning fails.
        RuntimeError: If called in a graph or `tf.function`.
    """
    variables = _named_variables(target, "assign_parameters")
    if not isinstance(dictionary, Mapping):
        wanted = "a mapping from name to value"
        raise checks.wrong("dictionary", wanted, dictionary, TypeError)
    given = dict(dictionary)
    if _N_MODELS not in variables:
        given.pop(_N_MODELS, None)
    values = _checked(variables, given, strict)
    restore = variables_lib.snapshot(variables[name] for name in values)
    with variables_lib.all_or_none(restore):
        for name, value in values.items():
            variables[name].assign(value)
    return list(values)


def average_parameters(target: Any, dictionary: dict[str, Any]) -> None:
    """Averages the present parameters into a dictionary of averages.

        average <- average + (parameter - average) / (n_models + 1)

    as `swa_tf.StochasticWeightAveraging` does, to the bit, and in at least
    float32. Parameters that are not floating-point are copied. With the number
    of models in it, the dictionary can be saved with `np.savez`, loaded with
    `dict(np.load(...))`, and averaged into again.

    >>> layer = tf.keras.layers.Dense(1, use_bias=False)
    >>> layer.build([None, 1])
    >>> averages = {}
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = swa_tf.assign_parameters(layer, {"kernel": value})
    ...     swa_tf.average_parameters(layer, averages)
    >>> averages["kernel"].tolist(), int(averages["n_models"])
    ([[3.0]], 3)

    Args:
        target: As in `copy_parameters`.
        dictionary: The averages, changed in place: empty at first. One of
            `copy_parameters` counts as one model.

    Raises:
        TypeError: If `target` is none of these, or `dictionary` no dictionary.
        ValueError: If the names are not those of `target`, a value does not
            fit, or "n_models" is no whole number >= 1, or is the name of a
            parameter. The dictionary has not changed then.
        RuntimeError: If called in a graph or `tf.function`.

    References:
        Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.1.
    """
    variables = _named_variables(target, "average_parameters")
    if not isinstance(dictionary, dict):
        wanted = "a dictionary; one of a file is `dict(np.load(path))`"
        raise checks.wrong("dictionary", wanted, dictionary, TypeError)
    if _N_MODELS in variables:
        wanted = f"one with no parameter '{_N_MODELS}', the key of the count"
        raise checks.wrong("target", wanted, target)
    averages: dict[str, np.ndarray] = {}
    n_models = 0
    if dictionary:
        given = dict(dictionary)
        count = np.asarray(given.pop(_N_MODELS, 1))[()]
        name = f"dictionary['{_N_MODELS}']"
        n_models = checks.integer(name, count, at_least=1)
        averages = _checked(variables, given, averages=True)
    c = tf.constant(1.0 / (n_models + 1), tf.float64)
    threshold = rounding.threshold(tf.constant(n_models, tf.int64))
    new = {}
    for name, variable in variables.items():
        dtype = variables_lib.dtype_of_average(variable)
        value = tf.cast(variable.read_value(), dtype)
        if n_models and dtype.is_floating:
            average = tf.constant(averages[name])
            value = rounding.moved(average, value, c, threshold)
        new[name] = _array(value)
    new[_N_MODELS] = np.asarray(n_models + 1, np.int64)
    dictionary.update(new)


def _named_variables(target: Any, function: str) -> dict[str, Any]:
    checks.eager_mode(function)
    compat.check_keras("target", target)
    return variable_names.named_variables(target)


def _array(value: tf.Tensor) -> np.ndarray:
    """Returns a copy that shares no memory with TensorFlow."""
    return np.array(value.numpy(), value.dtype.as_numpy_dtype)


def _checked(
    variables: Mapping[str, Any],
    given: Mapping[str, Any],
    strict: bool = True,
    averages: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the given values, or `averages`, in the order of variables."""
    problems = []
    for name in given:
        if name not in variables:
            close = difflib.get_close_matches(str(name), variables, 1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            problems.append(f"{name!r}, which is no parameter{hint}")
    values = {}
    for name, variable in variables.items():
        if name in given:
            try:
                values[name] = _fitted(given[name], variable, averages)
            except _MisfitError as error:
                problems.append(f"'{name}' {error}")
        elif strict:
            problems.append(f"'{name}' missing")
    more = len(problems) - _MAX_LISTED_PROBLEMS
    if more > 0:
        problems[_MAX_LISTED_PROBLEMS:] = [f"and {more} more"]
    if problems:
        raise ValueError(
            "`dictionary` must hold values that fit the parameters of "
            f"`target`. Received: {'; '.join(problems)}"
        )
    return values


class _MisfitError(Exception):
    """Says how a value does not fit its parameter."""


def _fitted(value: Any, variable: Any, is_average: bool) -> np.ndarray:
    """Returns `value` in a new array; raises if its dtype cannot hold it."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise _MisfitError(f"that is no array ({error})") from error
    own = np.dtype(variable.dtype.as_numpy_dtype)
    raw = array.dtype.type is np.void and array.dtype.itemsize == own.itemsize
    if raw and own.isbuiltin != 1:
        # `np.load` gives back the bits of bfloat16, but not the name.
        array = array.view(own)
    shape = tuple(variable.read_value().shape)
    if array.shape == () and not is_average:  # one number fills a parameter
        array = np.broadcast_to(array, shape)
    if array.shape != shape:
        raise _MisfitError(f"of shape {array.shape} instead of {shape}")
    dtype = variable.dtype
    if is_average:
        dtype = variables_lib.dtype_of_average(variable)
    try:
        given = tf.as_dtype(array.dtype)
    except TypeError:
        given = None
    if given != dtype and (
        given is None
        or tf.string in (given, dtype)
        or given.is_complex > dtype.is_complex
    ):
        raise _MisfitError(f"of dtype {array.dtype} instead of {dtype.name}")
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        new = array.astype(dtype.as_numpy_dtype)
    if given == dtype:
        return new
    if dtype.is_floating or dtype.is_complex:
        lost = np.isfinite(array) & ~np.isfinite(new)
    else:
        exact = array.astype(np.float64) if given.is_floating else array
        # Python compares numbers of any two types exactly.
        lost = new.astype(object) != exact.astype(object)
    if np.any(lost):
        raise _MisfitError(
            f"with {array[lost].flat[0]}, which {dtype.name} cannot hold"
        )
    return new
