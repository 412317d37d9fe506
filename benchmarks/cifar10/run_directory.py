"""The output directory, by which a killed run can be resumed.

Nothing appears in it half-written: a file or a checkpoint is made under a
temporary name beside its own, and renamed when it is complete. A checkpoint is
a directory that holds the variables and the records of all epochs up to it,
so that the two cannot disagree. Whatever a kill leaves under a temporary name
is removed by the next `--resume`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError

SETTINGS = "settings.json"
RESULTS = "results.json"
WEIGHTS = "weights"
_CHECKPOINTS = "checkpoints"
_BRANCH = "branch"
_VARIABLES = "variables"
_PARTIAL = ".partial-"
_EPOCH = re.compile(r"epoch-(\d+)")


@dataclasses.dataclass
class Records:
    """All that a run has measured so far.

    Attributes:
        epochs: The figures of each epoch, from the first.
        decayed: The figures of each epoch of the branch whose rate decays.
        final: The figures of the end, on validation and test; None before.
        seconds: The times of each epoch to `train` and to `evaluate`, and the
            `images` trained on. They are apart from the figures, for they are
            all that may differ between two runs with the same seed.
    """

    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    decayed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    final: dict[str, Any] | None = None
    seconds: list[dict[str, float]] = dataclasses.field(default_factory=list)


class RunDirectory:
    """The directory of one run. Nothing is written before `start`.

    Args:
        path: Where it is.
        settings: What the figures depend on: `{"flags": ..., "stack": ...}`,
            as JSON holds it.
        resume: Whether to go on with what is there.

    Raises:
        BenchmarkError: If `path` holds files and `resume` is False, if it
            holds something that is not a run, or a run of other settings.
    """

    def __init__(
        self, path: str, settings: dict[str, dict[str, Any]], resume: bool
    ) -> None:
        self.path = path
        self._settings = settings
        self._checkpoints = os.path.join(path, _CHECKPOINTS)
        if os.path.lexists(path) and not os.path.isdir(path):
            raise BenchmarkError(
                f"`--output_dir` must be a directory. Received: a file, {path}"
            )
        present = sorted(os.listdir(path)) if os.path.isdir(path) else []
        if present and not resume:
            raise BenchmarkError(
                "`--output_dir` must be new or empty. Received: "
                f"--output_dir={path}, which holds {present[-1]!r}"
                f"{' and more' if len(present) > 1 else ''}. Give `--resume` "
                "to go on with the run in it, or another directory."
            )
        if any(not name.startswith(_PARTIAL) for name in present):
            self._check_settings()

    def start(self) -> None:
        """Makes the directory, or removes what a kill left half-written.

        Raises:
            BenchmarkError: If the directory cannot be written to.
        """
        try:
            os.makedirs(self.path, exist_ok=True)
            weights = os.path.join(self.path, WEIGHTS)
            for directory in (self.path, self._checkpoints, weights):
                _remove_partial(directory)
            self._remove_epochs(sorted(self._epochs())[:-1])
            if not os.path.exists(os.path.join(self.path, SETTINGS)):
                self.write_json(SETTINGS, self._settings)
        except OSError as error:
            raise BenchmarkError(
                f"`--output_dir` must be writable. Received: {error}"
            ) from error

    def results(self) -> dict[str, Any] | None:
        """Returns the results of a finished run, or None."""
        path = os.path.join(self.path, RESULTS)
        return files.read_json(path) if os.path.exists(path) else None

    def write(self, name: str, make: Callable[[str], None]) -> None:
        """Makes a file or directory, and puts it in place when complete.

        Args:
            name: Its name. What has this name already is replaced.
            make: Makes it, under the path that it is given.
        """
        _publish(os.path.join(self.path, name), make)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file, in place when complete."""
        self.write(name, lambda path: _write_text(path, text))

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file, in place when complete."""
        self.write_text(name, files.as_json(value))

    def save(self, checkpoint: tf.train.Checkpoint, records: Records) -> None:
        """Saves the state after the last epoch of `records`."""

        def make(path: str) -> None:
            os.mkdir(path)
            checkpoint.write(os.path.join(path, _VARIABLES))
            _write_text(
                os.path.join(path, "records.json"),
                files.as_json(dataclasses.asdict(records)),
            )

        os.makedirs(self._checkpoints, exist_ok=True)
        older = self._epochs()
        epoch = len(records.epochs) + len(records.decayed)
        _publish(self._epoch_path(epoch), make)
        self._remove_epochs(older)

    def save_weights(self, name: str, variables: Sequence[Any]) -> None:
        """Saves the values of some variables as `weights/<name>.npz`."""
        values = [tf.convert_to_tensor(v).numpy() for v in variables]
        os.makedirs(os.path.join(self.path, WEIGHTS), exist_ok=True)
        self.write(
            os.path.join(WEIGHTS, f"{name}.npz"),
            lambda path: np.savez(path, *values),
        )

    def save_branch(self, checkpoint: tf.train.Checkpoint) -> None:
        """Saves the state that both branches start from."""

        def make(path: str) -> None:
            os.mkdir(path)
            checkpoint.write(os.path.join(path, _VARIABLES))

        os.makedirs(self._checkpoints, exist_ok=True)
        _publish(os.path.join(self._checkpoints, _BRANCH), make)

    def restore_branch(self, checkpoint: tf.train.Checkpoint) -> None:
        """Restores the state that both branches start from.

        Raises:
            BenchmarkError: If it is missing or damaged.
        """
        _restore(checkpoint, os.path.join(self._checkpoints, _BRANCH))

    def restore(self, checkpoint: tf.train.Checkpoint) -> Records:
        """Restores the newest checkpoint, if there is one.

        Returns:
            The records of the epochs up to it; empty without one.

        Raises:
            BenchmarkError: If the checkpoint is damaged.
        """
        epochs = self._epochs()
        if not epochs:
            return Records()
        path = self._epoch_path(max(epochs))
        records = Records(**files.read_json(os.path.join(path, "records.json")))
        _restore(checkpoint, path)
        return records

    def _epochs(self) -> list[int]:
        if not os.path.isdir(self._checkpoints):
            return []
        matches = map(_EPOCH.fullmatch, os.listdir(self._checkpoints))
        return [int(match.group(1)) for match in matches if match]

    def _remove_epochs(self, epochs: list[int]) -> None:
        for epoch in epochs:
            _remove(self._epoch_path(epoch))

    def _epoch_path(self, epoch: int) -> str:
        return os.path.join(self._checkpoints, f"epoch-{epoch:05d}")

    def _check_settings(self) -> None:
        path = os.path.join(self.path, SETTINGS)
        if not os.path.exists(path):
            raise BenchmarkError(
                "`--resume` must find a run in `--output_dir`. Received: "
                f"--output_dir={self.path}, which holds files but no {SETTINGS}"
            )
        before = files.read_json(path)
        for name, value in self._settings["flags"].items():
            there = before["flags"].get(name)
            if there != value:
                raise BenchmarkError(
                    f"`--{name}` must be {there} to resume the run in "
                    f"{self.path}. Received: --{name}={value}"
                )
        for name, value in self._settings["stack"].items():
            there = before["stack"].get(name)
            if there != value:
                raise BenchmarkError(
                    f"The run in {self.path} was started with {name} {there}, "
                    f"and this is {value}: the figures would not be the same. "
                    "Resume it with the former, or start in another directory."
                )


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    try:
        status = checkpoint.read(os.path.join(path, _VARIABLES))
        status.assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, ValueError, AssertionError) as error:
        raise BenchmarkError(
            f"The checkpoint in {path} cannot be restored: {error}"
        ) from error


def _remove_partial(directory: str) -> None:
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            if name.startswith(_PARTIAL):
                _remove(os.path.join(directory, name))


def _publish(path: str, make: Callable[[str], None]) -> None:
    """Makes `path` under another name, and renames it when complete."""
    directory, name = os.path.split(path)
    partial = os.path.join(directory, f"{_PARTIAL}{name}")
    _remove(partial)
    try:
        make(partial)
    except (OSError, tf.errors.OpError) as error:
        _remove(partial)
        raise BenchmarkError(f"{path} cannot be written: {error}") from error
    if os.path.isdir(path):
        _remove(path)  # A directory cannot be replaced, only followed.
    os.replace(partial, path)


def _remove(path: str) -> None:
    """Removes a file or directory; a directory disappears at once."""
    if not os.path.isdir(path):
        if os.path.exists(path):
            os.remove(path)
        return
    directory, name = os.path.split(path)
    if not name.startswith(_PARTIAL):
        doomed = os.path.join(directory, f"{_PARTIAL}old-{name}")
        if os.path.isdir(doomed):
            shutil.rmtree(doomed)
        os.replace(path, doomed)
        path = doomed
    shutil.rmtree(path)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
