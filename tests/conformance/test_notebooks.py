"""The notebooks of the docs run, and hold the outputs of one whole run."""

import re

import pytest

pytest.importorskip("nbclient", reason="the extra `test` has it")

from tests import notebooks

by_path = pytest.mark.parametrize(
    "path", notebooks.NOTEBOOKS, ids=lambda path: path.stem
)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _printed(notebook):
    return "".join(
        output.text
        for cell in _code(notebook)
        for output in cell.outputs
        if output.output_type == "stream"
    )


def _losses(printed):
    found = re.findall(r"^(.+?) +accuracy .* %, loss ([\d.]+)$", printed, re.M)
    return {name: float(loss) for name, loss in found}


@by_path
def test_its_outputs_are_of_one_run_and_small(path):
    cells = _code(notebooks.read(path))
    assert [cell.execution_count for cell in cells] == [
        *range(1, len(cells) + 1)
    ]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"display_data", "execute_result", "stream"}
    assert "stderr" not in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 200_000


@by_path
def test_it_installs_on_colab_first(path):
    first = _code(notebooks.read(path))[0].source
    assert 'if "google.colab" in sys.modules:\n    %pip install' in first


@pytest.mark.slow
@by_path
def test_it_runs(path, tmp_path):
    printed = _printed(notebooks.executed(path, str(tmp_path)))
    losses = _losses(printed)
    if path.stem == "own_keras_model":
        assert losses["averaged model:"] < 0.1
        assert (tmp_path / "runs" / "averaged.keras").exists()
        assert (tmp_path / "runs" / "averaged" / "saved_model.pb").exists()
    else:
        for weights in ("last weights", "averaged"):
            moving = losses[f"{weights}, moving statistics"]
            assert losses[f"{weights}, refit statistics"] < 0.8 * moving
