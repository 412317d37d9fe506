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


def test_committed_result_is_what_the_docs_say():
    path = ROOT / "benchmarks" / "results" / "checkpoint_averaging.md"
    tables = {}
    for section in path.read_text("utf-8").split("## ")[1:]:
        form = section.split(":")[0]
        rows = re.findall(r"^\| (\w.*?) +\|(.*)\|$", section, re.M)
        tables[form] = {way: cells.split("|") for way, cells in rows}
    assert tables.keys() == {"checkpoint", "weights.h5", "keras"}
    ours = {form: t["average_checkpoints"] for form, t in tables.items()}
    assert float(ours["checkpoint"][3]) < 2  # times reading and writing
    assert float(ours["weights.h5"][3]) < 3
    loading = tables["keras"]["loading with Keras"]
    assert float(ours["keras"][0]) < float(loading[0])
    for cells in ours.values():
        assert float(cells[6]) <= 2.5  # checkpoints of memory
