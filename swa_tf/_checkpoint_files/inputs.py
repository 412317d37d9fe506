"""The inputs of an average of files: opened, compared, read."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Union

import numpy as np

from swa_tf._checkpoint_files import finding
from swa_tf._checkpoint_files.hdf5 import Hdf5File
from swa_tf._checkpoint_files.keras_zip import KerasFile
from swa_tf._checkpoint_files.stored import DamagedError, Tensor, is_float
from swa_tf._checkpoint_files.tensor_bundle import TensorBundle

Checkpoint = Union[TensorBundle, Hdf5File]


def opened(path: str, argument: str = "inputs") -> Checkpoint:
    """A checkpoint, or an error that says why it cannot be one."""
    if os.path.isdir(path):
        raise ValueError(
            f"`{argument}` must be a list of checkpoints, or one directory. "
            f"Received: the directory '{path}' in a list"
        )
    files = finding.files(path)
    if not files:
        raise FileNotFoundError(
            f"`{argument}` must be checkpoints that exist. Received: '{path}'"
        )
    with errors_of(path, argument):
        for file in files:
            if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe never ends
                raise DamagedError(f"{os.path.basename(file)} is no file")
        suffix = finding.suffix(path)
        if suffix == ".keras":
            return KerasFile(path)
        return Hdf5File(path) if suffix else TensorBundle(path)


@contextlib.contextmanager
def errors_of(path: str, argument: str = "inputs") -> Iterator[None]:
    """Says which input it is that cannot be read."""
    try:
        yield
    except DamagedError as error:
        reason: object = error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
    else:
        return
    raise ValueError(
        f"`{argument}` must be whole checkpoints. Received: '{path}': {reason}"
    )


def check_whole(checkpoints: Iterable[Checkpoint]) -> None:
    """Compares checksums of more than one tensor, where a form has them."""
    for checkpoint in checkpoints:
        if isinstance(checkpoint, KerasFile):
            with errors_of(checkpoint.path):
                checkpoint.check()


def check_alike(checkpoint: Checkpoint, newest: Checkpoint) -> None:
    """Raises unless both have the same tensors; slots aside."""
    if checkpoint.form != newest.form:
        raise ValueError(
            "`inputs` must be of one form. "
            f"Received: '{checkpoint.path}', a {checkpoint.form}, and "
            f"'{newest.path}', a {newest.form}"
        )
    slots = checkpoint.slots | newest.slots
    differ = {
        "without": newest.tensors.keys() - checkpoint.tensors.keys() - slots,
        "with, in addition,": checkpoint.tensors.keys()
        - newest.tensors.keys()
        - slots,
        "with another shape or type of": {
            key
            for key in checkpoint.tensors.keys() & newest.tensors.keys()
            if key not in slots
            and _kind(checkpoint.tensors[key]) != _kind(newest.tensors[key])
        },
    }
    for how, keys in differ.items():
        if keys:
            tensors = ", ".join(
                f"'{newest.name(key)}' " + _kinds(key, checkpoint, newest)
                for key in sorted(keys)[:3]
            )
            raise ValueError(
                "`inputs` must hold the same tensors. "
                f"Received: '{checkpoint.path}' {how} {tensors}"
                f"{' and more' if len(keys) > 3 else ''}, against "
                f"'{newest.path}'"
            )


def _kinds(key: str, *checkpoints: Checkpoint) -> str:
    """Its shape and type in the first, instead of those in the second."""
    return " instead of ".join(
        _kind(each.tensors[key]) for each in checkpoints if key in each.tensors
    )


def _kind(tensor: Tensor) -> str:
    if tensor.dtype is None:
        return "(string)"
    return f"({tensor.dtype.name}, {list(tensor.shape)})"


def averaged(newest: Checkpoint, from_newest: Iterable[str]) -> set[str]:
    """The keys of what is averaged."""
    if isinstance(from_newest, str):
        raise TypeError(
            "`from_newest` must be a list of regular expressions. "
            f"Received: from_newest={from_newest!r}"
        )
    keys = {
        key for key, tensor in newest.tensors.items() if is_float(tensor.dtype)
    }
    keys -= newest.slots | newest.state
    for pattern in from_newest:
        try:
            found = {k for k in keys if re.search(pattern, newest.name(k))}
        except (re.error, TypeError) as error:
            raise ValueError(
                "`from_newest` must hold regular expressions. "
                f"Received: {pattern!r}: {error}"
            ) from None
        if not found:
            raise ValueError(
                "`from_newest` must match names of weights. Received: "
                f"{pattern!r}, which matches none of those left"
            )
        keys -= found
    if not keys:
        raise ValueError(
            "`inputs` must hold weights of floating point to average. "
            f"Received: none in '{newest.path}'"
        )
    return keys


class Reading:
    """Reads the pieces of tensors, and tells how far it has come."""

    def __init__(
        self,
        checkpoints: Iterable[Checkpoint],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()  # several threads read
        self._total = sum(
            tensor.nbytes
            for checkpoint in checkpoints
            for tensor in checkpoint.tensors.values()
        )

    def readers(
        self, checkpoint: Checkpoint, key: str
    ) -> list[Callable[[], np.ndarray]]:
        """Functions that read the pieces of one tensor."""
        with errors_of(checkpoint.path):
            return [
                functools.partial(self._read, checkpoint, reader)
                for reader in checkpoint.tensors[key].readers()
            ]

    def check(self, checkpoint: Checkpoint, keys: Iterable[str]) -> None:
        """Reads tensors for their checksums only."""
        for key in keys:
            for reader in self.readers(checkpoint, key):
                reader()

    def _read(
        self, checkpoint: Checkpoint, reader: Callable[[], np.ndarray]
    ) -> np.ndarray:
        with errors_of(checkpoint.path):
            piece = reader()
        with self._lock:
            self._done += piece.nbytes
            if self._progress is not None:
                self._progress(self._done, self._total)
        return piece
