"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A path to write to, which takes the place of `path` at the end.

    Its name ends as `path` does, so that formats known by their suffix come
    out the same. What was at `path`, a file or a folder, stays until the new
    one is complete, and stays for good if the block raises.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename within one file system is atomic.
    scratch = pathlib.Path(
        tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
    )
    try:
        new = scratch / path.name
        yield new
        if new.is_dir() and path.is_dir():  # a folder cannot be replaced
            old = scratch / f"old-{path.name}"
            try:
                path.rename(old)
                new.rename(path)
            except BaseException:
                if old.exists() and not path.exists():
                    old.rename(path)
                raise
        else:
            os.replace(new, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
