"""Paths of checkpoints: which files they are, and which is the newest."""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Union

import tensorflow as tf
from google.protobuf import text_format

from swa_tf.support import atomic_files, checks

Path = Union[str, "os.PathLike[str]"]

SHARDED = ".weights.json"
"""The suffix of a file of Keras that lists shards beside it."""

SUFFIXES = (".weights.h5", SHARDED, ".h5", ".hdf5", ".keras")
"""The suffixes of Keras's files. Other paths are prefixes of several files."""

STATE = "checkpoint"
"""TensorFlow's file that says which checkpoint of a folder is the latest."""

_SAVED_MODEL = "/variables/variables"  # the checkpoint in such a folder

_DATA = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
_PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")  # `.meta`: no data
_NUMBER = re.compile(r"\d+(?:\.\d+)*(?:e[+-]\d+)?")


def checkpoints_in(
    directory: Path,
    last: int | None = None,
    every: int = 1,
    until: int | None = None,
) -> list[str]:
    """Returns the checkpoints of a directory, the oldest first.

    The order is that of the last whole number in their names, such as `ckpt-12`
    or `epoch_03.weights.h5`, or, where they have none or the same, of the times
    of writing. If other numbers vary too, and the times contradict the last
    ones, a warning says so.

    >>> with tempfile.TemporaryDirectory() as run:
    ...     for step in (1, 2, 10):
    ...         path = os.path.join(run, f"ckpt-{step}")
    ...         _ = tf.train.Checkpoint(w=tf.Variable(0.0)).write(path)
    ...     for until in (None, 9):
    ...         found = swa_tf.checkpoints_in(run, last=2, until=until)
    ...         [os.path.basename(path) for path in found]
    ['ckpt-2', 'ckpt-10']
    ['ckpt-1', 'ckpt-2']

    Args:
        directory: A folder with checkpoints of one form, such as
            `tf.train.CheckpointManager` or `ModelCheckpoint` fill.
        last: How many to take, the newest ones; None takes all.
        every: Takes every n-th of them, the newest among them.
        until: The highest number to take; `last` and `every` count from there.
            None takes all.

    Returns:
        Paths that `average_checkpoints` takes.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it holds no checkpoint, checkpoints of several forms,
            fewer than `last`, not all that its `checkpoint` file lists, or
            some without a number, such as a `best.keras` beside the epochs; if
            no number is at most `until`, or two checkpoints have the same.
    """
    every = checks.integer("every", every, at_least=1)
    if last is not None:
        last = checks.integer("last", last, at_least=1)
    if until is not None:
        until = checks.integer("until", until, at_least=0)
    if not isinstance(directory, (str, os.PathLike)):
        raise checks.wrong("directory", "a path", directory, TypeError)
    folder = os.fspath(directory)
    paths = in_directory(folder)
    if until is not None:
        paths = _up_to(until, paths, folder)
    paths = paths[::-1][::every][::-1]
    if last is None:
        return paths
    if last > len(paths):
        many = f"{len(paths)}, the number of checkpoints to choose from"
        raise checks.wrong("last", f"at most {many} in '{folder}'", last)
    return paths[-last:]


def _up_to(until: int, paths: list[str], folder: str) -> list[str]:
    """Returns the paths whose number is at most `until`."""
    numbers = _own_numbers(paths)
    if not numbers:
        where = f"'{folder}', where names have no number of their own"
        raise checks.wrong("until", f"None in {where}", until)
    if min(numbers) > until:
        lowest = f"at least {min(numbers)}, the lowest number in '{folder}'"
        raise checks.wrong("until", lowest, until)
    return [path for path, n in zip(paths, numbers) if n <= until]


def suffix(path: str) -> str:
    """Returns the suffix of a file of Keras; "" for TensorFlow's."""
    return next((each for each in SUFFIXES if path.endswith(each)), "")


def files(path: str) -> list[str]:
    """Returns the files of a checkpoint that exist; the main one is last."""
    folder, name = atomic_files.split(path)
    there = atomic_files.names_in(folder)
    names = {each for each in there if _DATA.sub("", each) == name}
    if suffix(path):
        names &= {name}
    found = sorted(names)
    if suffix(path) == SHARDED:
        stem = re.escape(name[: -len(SHARDED)])
        shard = re.compile(rf"{stem}_\d{{5}}\.weights\.h5")
        found = sorted(filter(shard.fullmatch, there)) + found
    return [folder + each for each in found]


def _saved_model(path: str) -> str:
    """Returns the checkpoint in the folder of a SavedModel; "" of others."""
    inner = path.rstrip("/") + _SAVED_MODEL
    is_one = "saved_model.pb" in atomic_files.names_in(path) and files(inner)
    return inner if is_one else ""


def name_of(path: str) -> str:
    """Returns the name of a checkpoint; of a SavedModel that of its folder."""
    return os.path.basename(path.removesuffix(_SAVED_MODEL))


def resolved(inputs: Any, argument: str = "inputs") -> list[str]:
    """Returns the checkpoints in a directory, or those of a list."""
    is_path = isinstance(inputs, (str, os.PathLike))
    if is_path and _saved_model(os.fspath(inputs)):
        return checked([inputs], argument)
    if is_path and tf.io.gfile.isdir(inputs):
        return in_directory(os.fspath(inputs), argument)
    if is_path or not isinstance(inputs, Iterable):
        is_missing = is_path and not files(os.fspath(inputs))
        wanted = "a list of paths, or a directory that exists"
        error = FileNotFoundError if is_missing else TypeError
        raise checks.wrong(argument, wanted, inputs, error)
    return checked(inputs, argument)


def checked(inputs: Iterable[Any], argument: str = "inputs") -> list[str]:
    """Returns the paths in a list without `.index` and `.data-...`."""
    given = []
    for path in inputs:
        if not isinstance(path, (str, os.PathLike)):
            received = f"{path!r} in it"
            raise checks.must(
                argument, "be a list of paths", received, TypeError
            )
        given.append(os.fspath(path))
    # For `ckpt-*` a shell gives both the index and the data of a checkpoint.
    paths = list(dict.fromkeys(_PART.sub("", path) for path in given))
    paths = [_saved_model(path) or path for path in paths]
    twice = _twice(given, os.path.realpath) + _twice(paths, _real)
    if twice:
        raise ValueError(
            f"`{argument}` must name each checkpoint once. "
            f"Received twice: '{twice[0]}'"
        )
    if not paths:
        raise checks.must(argument, "hold at least one checkpoint", "none")
    for path in paths:
        if tf.io.gfile.isdir(path) and files(path)[-1:] in ([], [path]):
            raise checks.must(
                argument,
                "be a list of checkpoints, or one directory (for the command, "
                "as --checkpoint_dir)",
                f"the directory '{path}' in a list",
            )
    return paths


def matching(patterns: Iterable[str]) -> list[str]:
    """Returns what matches patterns; a path that exists matches itself only."""
    found: list[str] = []
    for pattern in patterns:
        matches: set[str] = set()
        if not files(pattern):
            # TensorFlow's finds `./x` for `x`; `glob` knows no remote paths.
            remote = atomic_files.is_remote(pattern)
            find = tf.io.gfile.glob if remote else glob.glob
            matches.update(find(pattern), find(f"{pattern}.index"))
        found += in_order(checked(matches)) if matches else [pattern]
    return checked(found)


def in_directory(folder: str, argument: str = "directory") -> list[str]:
    """Returns the checkpoints in a directory, the oldest first."""
    there = atomic_files.names_in(folder)
    if not tf.io.gfile.isdir(folder):
        wanted = "a folder with checkpoints"
        raise checks.wrong(argument, wanted, folder, FileNotFoundError)
    names = _prefixes(there)
    for name in itertools.filterfalse(_DATA.search, there):
        if suffix(name):
            names.add(name)
        elif _saved_model(os.path.join(folder, name)):
            names.add(name + _SAVED_MODEL)
    names = {name for name in names if not name.startswith(".")}
    for name in [each for each in names if suffix(each) == SHARDED]:
        if name.removesuffix(".json") in names:  # it is a report
            names.remove(name)
        shards = files(os.path.join(folder, name))[:-1]
        names -= {os.path.basename(shard) for shard in shards}
    state = set(_listed(folder))
    # The first version of `Saver` writes one file of no particular name.
    names |= {name for name in state & there if not _PART.search(name)}
    forms = {f"*{suffix(name)}" for name in names}
    averages = {name for name in names if f"{name}.json" in there}
    others = {name for name in names if not _numbers(name_of(name))}
    how = "with"
    if len(forms) != 1:
        wanted, received = "hold checkpoints of one form", forms
    elif not state <= names:
        wanted = "hold what its file 'checkpoint' lists"
        how, received = "without", state - names
    elif averages not in (set(), names):
        wanted, received = "not hold averages beside checkpoints", averages
    elif others not in (set(), names) and not averages:
        wanted = "hold checkpoints with numbers in their names, or without"
        received = others
    else:
        paths = [os.path.join(folder, name) for name in sorted(names)]
        return in_order(checked(paths, argument))
    found = ", ".join(sorted(received)) or "no checkpoint"
    found = f"{argument}='{folder}' {how} {found}"
    raise checks.must(argument, f"{wanted}; else give a list of paths", found)


def in_order(paths: list[str]) -> list[str]:
    """Returns paths in the order that `checkpoints_in` describes."""
    written = {path: _written(path) for path in paths}
    by_time = sorted(paths, key=written.__getitem__)
    own = _own_numbers(paths)
    if not own:
        return by_time
    order = [path for _, path in sorted(zip(own, paths))]
    times = [written[path] for path in order]
    others = {tuple(_numbers(name_of(path))[:-1]) for path in paths}
    if len(others) > 1 and times != sorted(times):
        warnings.warn(
            f"The checkpoints are taken from '{order[0]}' to '{order[-1]}', in "
            "the order of the last whole number in their names, but were "
            f"written from '{by_time[0]}' to '{by_time[-1]}'. If another "
            "number counts, rename them so that it is the last one.",
            stacklevel=1,  # one place, so that it is shown once
        )
    return order


def _own_numbers(paths: list[str]) -> list[int]:
    """Returns the last number in each name, or none unless all differ."""
    numbers = [_numbers(name_of(path))[-1:] for path in paths]
    own = [number for found in numbers for number in found]
    return own if len(set(own)) == len(paths) else []


def _numbers(name: str) -> list[int]:
    """Returns the whole numbers in a name, without those of its suffix."""
    stem = name[: len(name) - len(suffix(name))]
    return [int(n) for n in _NUMBER.findall(stem) if n.isdigit()]


def checked_output(output: Any, paths: list[str]) -> str:
    """Returns the path of the result, or raises if it cannot be that."""
    output = atomic_files.checked_path("output", output)
    wanted = suffix(paths[0])
    is_folder = output.endswith("/")
    if suffix(output) != wanted or _PART.search(output) or is_folder:
        ending = wanted or "a name without suffix"
        ending = f"end in {ending}, as the inputs do"
        raise checks.must("output", ending, f"output='{output}'")
    for parent in pathlib.Path(output).parents:
        if parent.exists() and not parent.is_dir():
            received = f"output='{output}', and '{parent}' is a file"
            raise checks.must("output", "be in a folder", received)
    for path in [*files(output), *files(f"{output}.json")]:
        received = f"output='{output}', and there is '{path}'"
        raise checks.must("output", "not exist", received, FileExistsError)
    return output


def _real(path: str) -> str:
    """Returns the path of a checkpoint without symbolic links."""
    # Remote file systems have no links, and a listing is a request.
    there = [] if atomic_files.is_remote(path) else files(path)
    return os.path.realpath([path, *there][-1])


def _twice(paths: list[str], real: Callable[[str], str]) -> list[str]:
    """Returns the paths that are really the same as one before them."""
    reals = [real(path) for path in paths]
    return [p for i, p in enumerate(paths) if reals.index(reals[i]) < i]


def _prefixes(names: Iterable[str]) -> set[str]:
    """Returns the names of TensorFlow's checkpoints by those of their files."""
    return {_DATA.sub("", name) for name in names if _DATA.search(name)}


def _listed(folder: str) -> list[str]:
    """Returns the names in the file `checkpoint` of a folder."""
    file = os.path.join(folder, STATE)
    # To read a pipe would never end.
    if not (atomic_files.is_remote(file) or os.path.isfile(file)):
        return []
    try:
        state = tf.train.get_checkpoint_state(folder)
    except (tf.errors.OpError, ValueError, OSError):
        state = None
    paths = [] if state is None else state.all_model_checkpoint_paths
    return [os.path.basename(path) for path in paths]


def state_with_latest(output: str) -> str | None:
    """Returns a text for the file `checkpoint`, with an average as the latest.

    The average is not yet at its path `output`. None where the file must stay
    as it is: it lists TensorFlow's form only, and a training run that looks for
    its latest checkpoint must not go on from an average, nor delete it as an
    old one. So there must be nothing but averages in the folder, each with its
    report.
    """
    if suffix(output):
        return None
    folder, name = atomic_files.split(output)
    there = atomic_files.names_in(folder)
    listed = [n for n in _listed(folder) if f"{n}.index" in there]
    if STATE in there and not listed:  # it is of others, or cannot be read
        return None
    if any(f"{other}.json" not in there for other in _prefixes(there)):
        return None
    state = tf.compat.v1.train.generate_checkpoint_state_proto(
        ".", name, [*listed, name]
    )
    return text_format.MessageToString(state)


def _written(path: str) -> int:
    """Returns when a checkpoint was last written, in nanoseconds."""
    there = files(path)
    if atomic_files.is_remote(path):
        times = [tf.io.gfile.stat(file).mtime_nsec for file in there]
    else:  # where TensorFlow says it in whole seconds; broken links have none
        times = [os.stat(f).st_mtime_ns for f in there if os.path.exists(f)]
    return max(times, default=0)
