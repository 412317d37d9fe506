"""The code of every page runs, as tests/docs/pages.py says."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.docs import pages, setup

# More than a few seconds; `.ci/run` runs them on the newest stack.
SLOW = {
    "docs/coming-from/addons.md",
    "docs/coming-from/averaging-scripts.md",
    "docs/coming-from/lightning.md",
    "docs/guides/best-model.md",
    "docs/guides/export.md",
    "docs/guides/hyperparameters.md",
    "docs/guides/soups.md",
}


def _readme(given):
    assert int(given["swa"].averages.n_models) == 2  # epochs 2 and 3


def _ema(given):
    assert int(given["ema"].n_models) == 2
    assert pathlib.Path("averaged.keras").exists()


def _keras(given):
    # 20 steps: 10 and 15.
    assert int(given["swa"].n_models) == 2
    assert int(given["averages"].n_models) == 3  # epochs 2 to 4
    inputs = tf.keras.Input([4])
    model = given["Averaged"](inputs, tf.keras.layers.Dense(3)(inputs))
    model.compile("sgd", given["loss_fn"])
    model.fit(given["dataset"], verbose=0)
    assert int(given["average"].n_models) == 2


def _checkpoints(given):
    averages = given["averages"]
    assert int(averages.pop("n_models")) == given["epochs"]
    for name, value in swa_tf.copy_parameters(given["model"]).items():
        if "moving" not in name:
            np.testing.assert_array_equal(value, averages[name])


def _distribution(given):
    assert int(given["swa"].n_models) == 4
    weights = given["weights_of_workers"]
    for variable, one, three in zip(
        given["model"].trainable_variables, weights[1], weights[3]
    ):
        average = given["swa"].average(variable)
        expected = (one.astype(np.float64) + 3.0 * three) / 4.0
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-6)


def _soups(given):
    assert "verdict" in str(given["soup"])


# What a page has done when it has run.
CHECK = {
    "README.md": _readme,
    "docs/checkpoints.md": _checkpoints,
    "docs/distribution.md": _distribution,
    "docs/ema.md": _ema,
    "docs/guides/soups.md": _soups,
    "docs/keras.md": _keras,
}


def _pages_with_code():
    for page in pages.paths():
        if pages.program(pages.read(page)).strip():
            marks = [pytest.mark.slow] if page in SLOW else []
            yield pytest.param(page, marks=marks)


@pytest.mark.parametrize("page", _pages_with_code())
def test_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = setup.names()
    for prepare in setup.PREPARE.get(page, ()):
        prepare(given)
    # A file, because AutoGraph reads the source of what it compiles.
    script = pathlib.Path(page.replace("/", "_")).with_suffix(".py").absolute()
    script.write_text(pages.program(pages.read(page)), encoding="utf-8")
    exec(compile(script.read_text("utf-8"), str(script), "exec"), given)
    if page in CHECK:
        CHECK[page](given)


def test_names_are_of_pages():
    assert {*SLOW, *CHECK, *setup.PREPARE} <= set(pages.paths())


PAGE = """\
| their line | our line |
| --- | --- |
| `other()` | `done.append(1)`, then `done.append(2)` |

| name | meaning |
| --- | --- |
| `other()` | `not_run()` |

```python
done.append(3)
```

```text
not_run()
```

```bash
swa-average-checkpoints --dry_run
pip install x
```
"""


def test_program_of_a_page():
    done = []
    text = pages.program(PAGE)
    exec(text, {"done": done, "run_command": done.append})
    assert done == [1, 2, 3, "swa-average-checkpoints --dry_run"]
    assert text.splitlines()[PAGE.splitlines().index("done.append(3)")]
