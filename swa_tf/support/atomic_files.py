"""Files that are written whole or not at all.

A path with a scheme, such as `gs://bucket/run`, is remote: only `tf.io.gfile`
knows its file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from swa_tf.support import checks, compat

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is remote."""
    return "://" in os.fspath(path)


def reason(error: BaseException) -> str:
    """Returns what an error says, without TensorFlow's trace of a graph."""
    if isinstance(error, tf.errors.OpError):
        of_op = re.search(r"(.*)\n\s*\[\[", error.message)
        return of_op.group(1) if of_op else str(error.message)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextlib.contextmanager
def errors_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an error of TensorFlow into an OSError that names `path`."""
    try:
        yield
    except tf.errors.OpError as error:
        why, path = reason(error), os.fspath(path)
        for number in _FULL:
            if why.endswith(os.strerror(number)):
                raise OSError(number, os.strerror(number), path) from error
        raise OSError(f"'{path}' cannot be written: {why}") from error


@contextlib.contextmanager
def scratch_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Makes a hidden local folder beside `path`, which is gone at the end.

    A rename from there is atomic. If the block raises, parents that were made
    are gone too, and an error of a full disk names `path`. For a remote `path`
    it is a temporary folder.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder)
        return
    path = pathlib.Path(path)
    made = [parent for parent in path.parents if not parent.exists()]
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(mode=0o700)
            yield scratch
        finally:
            try:
                shutil.rmtree(scratch, ignore_errors=True)
            finally:  # again, in case an interrupt came
                shutil.rmtree(scratch, ignore_errors=True)
    except BaseException as error:
        for parent in made:  # the innermost first
            with contextlib.suppress(OSError):  # no longer empty
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _FULL:
            said = os.strerror(error.errno)
            raise OSError(error.errno, said, os.fspath(path)) from error
        raise


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a path of the same name, which replaces `path` at a good end."""
    path = pathlib.Path(path)
    with scratch_folder(path) as scratch:
        new, old = scratch / path.name, scratch / f"old-{path.name}"
        yield new
        try:
            if new.is_dir() and path.is_dir():  # a folder cannot be replaced
                path.rename(old)
            os.replace(new, path)
        finally:
            if os.path.lexists(old) and not path.exists():
                old.rename(path)


def names_in(folder: str) -> set[str]:
    """Returns the names of all in a folder; none where there is no folder.

    Unlike `tf.io.gfile.exists` it knows broken links, and on `ram://` does
    not take the beginning of a name for the whole.
    """
    if not is_remote(folder):
        try:
            return set(os.listdir(folder or "."))
        except (OSError, ValueError):  # a path with a null character
            return set()
    try:
        names = tf.io.gfile.listdir(folder)
    except tf.errors.OpError:
        try:
            tf.io.gfile.exists(folder)
        except tf.errors.OpError as error:
            why = f"'{folder}' cannot be reached: {reason(error)}"
            raise OSError(why) from error
        return set()
    return {name.rstrip("/") for name in names}  # `gs://` marks folders so


def split(path: str) -> tuple[str, str]:
    """Returns the folder of a path, with its slash, and the name in it."""
    cut = path.rfind("/") + 1
    return path[:cut], path[cut:]


def is_there(path: str) -> bool:
    """Whether there is anything at a path, a broken link too."""
    folder, name = split(path.rstrip("/"))
    return name in names_in(folder)


def move(
    files: Iterable[pathlib.Path], folder: str, replaces: str = ""
) -> None:
    """Moves local files into a folder in order: all of them, or none.

    Only the last file may be named `replaces`; it may replace one that is
    there.
    """
    moves: list[tuple[str, str]] = []
    replaced: bool | None = None  # until the renames begin
    with errors_named(folder or "."):
        try:
            if is_remote(folder):
                tf.io.gfile.makedirs(folder)
            for file in files:
                target = os.path.join(folder, file.name)
                if is_remote(folder):
                    hidden = f".{file.name}-{uuid.uuid4().hex[:8]}"
                    moves.append((os.path.join(folder, hidden), target))
                    tf.io.gfile.copy(os.fspath(file), moves[-1][0])
                else:
                    moves.append((os.fspath(file), target))
            replaced = False
            for source, target in moves:
                if is_there(target):
                    replaced = split(target)[1] == replaces
                    if not replaced:
                        raise FileExistsError(f"'{target}' exists")
                tf.io.gfile.rename(source, target, overwrite=True)
        except BaseException:
            if replaced and not is_there(moves[-1][0]):
                raise  # what was there is gone, and all is done
            for source, target in moves:
                left = target  # what is no longer at its source
                if replaced is None or is_there(source):
                    if not is_remote(folder):
                        continue  # it goes with the scratch folder
                    left = source
                with contextlib.suppress(tf.errors.NotFoundError):
                    tf.io.gfile.remove(left)
            raise


def checked_path(argument: str, path: Any) -> str:
    """Returns a path as a string; raises unless it ends in a name."""
    if not isinstance(path, (str, os.PathLike)):
        raise checks.wrong(argument, "a path", path, TypeError)
    path = os.fspath(path)
    if split(path.rstrip("/"))[1] in ("", ".", ".."):
        raise checks.wrong(argument, "a path that ends in a name", path)
    return path


def check_model_path(name: str, path: Any) -> None:
    """Raises unless `save_model` can write to `path`."""
    local = pathlib.Path(checked_path(name, path))
    if local.suffix not in ("", ".keras", ".h5") or is_remote(path):
        wanted = "a local path that ends in .keras or .h5, or has no suffix"
        raise checks.wrong(name, wanted, os.fspath(path))
    if any(parent.is_file() for parent in local.parents):
        wanted = "a path below folders, not below a file"
        raise checks.wrong(name, wanted, os.fspath(path), NotADirectoryError)
    if local.is_file() and not local.suffix:
        wanted = "no file: without a suffix it becomes a folder"
        raise checks.wrong(name, wanted, os.fspath(path), FileExistsError)
    lost = names_in(os.fspath(path))
    is_other = lost and "saved_model.pb" not in lost
    if local.is_dir() and (local.suffix or is_other):
        wanted = "no folder of other files, which the model would replace"
        raise checks.wrong(name, wanted, os.fspath(path), FileExistsError)


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a model in the form of the suffix; without one, for serving."""
    check_model_path("filepath", path)  # what was not there may be by now
    with model_file(model, path) as new:
        if new.name.endswith(".weights.h5"):
            model.save_weights(str(new))
        elif new.suffix:
            model.save(str(new))
        else:
            model.export(str(new))


@contextlib.contextmanager
def model_file(
    model: Any, path: str | os.PathLike[str]
) -> Iterator[pathlib.Path]:
    """Gives where to write a model, which replaces `path` at a good end."""
    with replaced(path) as new, errors_named(path):
        if new.suffix == ".h5":
            reserve(new, _size_in_hdf5(model))
        yield new


def reserve(path: str | os.PathLike[str], size: int) -> None:
    """Raises OSError if the disk is too full: HDF5 could end the process."""
    zeros = bytes(1 << 20)
    try:
        with open(path, "wb", buffering=0) as file:
            while size > 0:
                size -= file.write(zeros[:size])
    finally:
        pathlib.Path(path).unlink(missing_ok=True)


def _size_in_hdf5(model: Any) -> int:
    """Returns how many bytes Keras writes for a model, at most."""
    optimizer = getattr(model, "optimizer", None)
    listed = [*model.weights, *compat.optimizer_variables(optimizer)]
    variables = [v for v in listed if isinstance(v, compat.VARIABLE_CLASSES)]
    values = sum(
        int(tf.size(v)) * compat.tf_variable(v).dtype.size for v in variables
    )
    # Names, places and the model's configuration take some KB a variable.
    return values + ((len(variables) + 4) << 14)
