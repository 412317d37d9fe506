"""Runs the notebooks of `docs/notebooks/` from top to bottom.

`python -m tests.notebooks` renews the outputs that are kept in them.
"""

from __future__ import annotations

import os
import pathlib
import tempfile

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def executed(path: pathlib.Path, folder: str) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in a folder of its own.

    What TensorFlow logs is left out.

    Raises:
        CellExecutionError: If a cell raises.
    """
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": folder}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.fspath(ROOT)})
    for cell in notebook.cells:
        cell.metadata.clear()  # of the times of the run
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
            ]
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, folder), path)
