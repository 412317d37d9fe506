"""The execution of a grid: each run in a process of its own, one by one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.cifar10 import config as config_lib
from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError
from benchmarks.table.plan import Run, departures


def execute(runs: Sequence[Run]) -> list[str]:
    """Makes, or finishes, the runs whose results are not there yet.

    Args:
        runs: In the order to make them.

    Returns:
        The runs that failed, in words.

    Raises:
        BenchmarkError: If a result that is there has other settings. No run
            has been started then.
    """
    missing = [run for run in runs if not _is_finished(run)]
    finished = len(runs) - len(missing)
    print(f"{len(runs)} runs, {finished} of them finished", flush=True)
    failed = []
    for number, run in enumerate(missing, start=1):
        print(f"Run {number} of {len(missing)}: {run}", flush=True)
        with _alone(run.directory) as lock:
            status = subprocess.run(_command(run), pass_fds=[lock]).returncode
        if status:
            failed.append(f"{run} (status {status})")
            print(f"Run {run} failed with status {status}", flush=True)
        else:
            made = os.path.join(run.directory, "results.json")
            files.write_text(run.result, files.read_text(made))
    return failed


def _is_finished(run: Run) -> bool:
    """Returns whether the result of a run is there, with its settings."""
    if not os.path.exists(run.result):
        return False
    kept = files.read_json(run.result)["flags"]
    wanted = config_lib.as_flags(config_lib.resolve(run.given))
    if departures(kept) != departures(wanted):
        raise BenchmarkError(
            f"{run.result} is of a run with other settings, as against those "
            f"of benchmarks/table/plan.py: {departures(kept)} in the file, "
            f"{departures(wanted)} to be run. Give another `--name`, or remove "
            "the file."
        )
    return True


def _command(run: Run) -> list[str]:
    given = [f"--{name}={value}" for name, value in run.given.items()]
    return [
        *(sys.executable, "-m", "benchmarks.cifar10", *given),
        *(f"--output_dir={run.directory}", "--resume"),
    ]


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[int]:
    """Waits until no other process is at work in the directory of a run.

    The process of the run inherits the lock. So it holds as long as that
    process lives, even where the grid that started it was killed.
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    lock = os.open(f"{directory}.lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting: another process is in {directory}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)
