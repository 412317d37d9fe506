"""The benchmark of checkpoint averages: its flags, and the committed result."""

import re

import pytest

from tests import programs
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--forms=zip"], "forms"),
        (["--n_parameters=10", "--n_variables=3"], "n_parameters"),
        (["--folder=no/such/folder"], "folder"),
        (["--output=no/such/folder/file.md"], "output"),
        (["something"], "something"),
    ],
)
def test_bad_flags(arguments, named):
    done = programs.run_module("benchmarks.checkpoint_averaging", *arguments)
    assert done.returncode != 0
    assert named in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_committed_result_keeps_within_the_limits():
    path = ROOT / "benchmarks" / "results" / "checkpoint_averaging.md"
    rows = re.findall(
        r"^\| average_checkpoints \|(.*)\|$", path.read_text("utf-8"), re.M
    )
    assert len(rows) == 3
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        assert (
            float(cells[3]) <= 1.5
        )  # times the library's own reading and writing
        assert float(cells[6]) <= 2.5  # checkpoints of memory
