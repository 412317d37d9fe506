"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from swa_tf import _compat

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def scratch_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A hidden folder beside `path`, which is gone at the end.

    From there a rename to `path` stays in one file system, and so is atomic.
    Folders made on the way to it are gone as well if the block raises. If it
    does for want of space, which the system says of no file, the error names
    `path`.
    """
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
            except BaseException:  # interrupted
                shutil.rmtree(scratch, ignore_errors=True)
                raise
    except BaseException as error:
        for parent in made:  # the innermost first
            with contextlib.suppress(OSError):  # no longer empty
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _FULL:
            full = error.filename
            if full is None or os.fspath(full).startswith(os.fspath(scratch)):
                said = os.strerror(error.errno)
                raise OSError(error.errno, said, os.fspath(path)) from error
        raise


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A path to write to, which takes the place of `path` at the end.

    Its name ends as `path` does, so that formats known by their suffix come
    out the same. What was at `path`, a file or a folder, stays until the new
    one is complete, and stays for good if the block raises.
    """
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


def move(files: Iterable[pathlib.Path], folder: pathlib.Path) -> None:
    """Moves files into a folder, in order, and all of them or none."""
    moved = []
    try:
        for file in files:
            moved.append(folder / file.name)
            os.rename(file, moved[-1])
    except BaseException:
        for file in reversed(moved):
            file.unlink(missing_ok=True)
        raise


def check_model_path(name: str, path: Any) -> None:
    """Raises unless `save_model` can write to `path`."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`{name}` must be a path. Received: {name}={path!r}")
    local = pathlib.Path(path)
    if (
        local.suffix not in ("", ".keras", ".h5")
        or not local.name
        or "://" in os.fspath(path)
        or any(parent.is_file() for parent in local.parents)
    ):
        raise ValueError(
            f"`{name}` must be a local path that ends in .keras, .h5 or "
            ".weights.h5, or has no suffix. "
            f"Received: {name}={os.fspath(path)!r}"
        )


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a model as the suffix says, without one for serving.

    Raises:
        OSError: If it cannot be written. What was at `path` is there then.
    """
    with replaced(path) as new:
        if new.suffix == ".h5":
            reserve(new, _size_in_hdf5(model))
        try:
            if new.name.endswith(".weights.h5"):
                model.save_weights(str(new))
            elif new.suffix:
                model.save(str(new))
            else:
                model.export(str(new))
        except tf.errors.OpError as error:  # how TensorFlow says it
            raise OSError(
                f"'{os.fspath(path)}' cannot be written: {error.message}"
            ) from error


def reserve(path: str | os.PathLike[str], size: int) -> None:
    """Raises OSError if there is no space for so many bytes at a new path.

    To be asked before HDF5 writes: a disk that fills up as it does can end the
    process, or leave files open that cannot be closed.
    """
    zeros = bytes(1 << 20)
    try:
        with open(path, "wb", buffering=0) as file:
            while size > 0:
                size -= file.write(zeros[:size])
    finally:
        pathlib.Path(path).unlink(missing_ok=True)


def _size_in_hdf5(model: Any) -> int:
    """How many bytes a model takes at most, for what Keras has."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.weights, *_compat.optimizer_variables(optimizer)]
    values = sum(
        math.prod(variable.shape) * _compat.tf_variable(variable).dtype.size
        for variable in variables
    )
    # Names, places and the model's configuration take some KB a variable.
    return values + ((len(variables) + 4) << 14)
