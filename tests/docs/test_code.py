"""The code of every page runs, as tests/docs/pages.py says."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.docs import pages, setup

# More than a few seconds; `.ci/run` runs them on the newest stack. On the
# others it runs the README and the start pages.
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
    steps = 2 * given["epochs"]
    assert int(given["ema"].n_models) == 2 + steps
    assert [int(a.n_models) for a in given["averages"]] == [steps, steps]
    assert len(given["snapshots"]) == 2 * given["epochs"]
    assert pathlib.Path("averaged.keras").exists()


def _keras(given):
    # 20 steps: 10 and 15.
    assert int(given["swa"].n_models) == 2
    assert int(given["averages"].n_models) == 3  # epochs 2 to 4
    inputs = tf.keras.Input([4])
    model = given["Averaged"](inputs, tf.keras.layers.Dense(3)(inputs))
    model.compile("sgd", given["loss_fn"], jit_compile=False)
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


def _averaged_model(given):
    assert int(given["teacher"].average.n_models) == 2
    assert len(given["average"].averaged) == 2
    loaded = tf.keras.models.load_model("averaged.keras")
    inputs = tf.ones([1, 4])
    np.testing.assert_array_equal(loaded(inputs), given["teacher"](inputs))


def _own_averages(given):
    variable = tf.Variable(0.0)
    averages = [given["PolynomialAverage"](1.0)]
    averages += [given["LateAverage"](1), given["ema"]]
    for value in (1.0, 4.0, 8.0):
        variable.assign(value)
        for average in averages:
            average.apply([variable])
    found = [float(average.average(variable)) for average in averages]
    # The first averages of the last are 1, and 1 + 3 * 2^-0.75.
    second = 1.0 + 3.0 * 2.0**-0.75
    third = second + (8.0 - second) * 3.0**-0.75
    np.testing.assert_allclose(found, [5.5, 6.0, third], rtol=1e-6)
    schedule = given["swa"].when
    assert [i for i in range(99) if schedule.due(i)] == [9, 29, 69]
    # In `fit`, after its steps: of 2 an epoch, 5 epochs have the tenth.
    model, swa = given["model"], given["swa"]
    model.fit(
        given["dataset"],
        epochs=5,
        callbacks=[swa_tf.SWACallback(averages=swa, unit="step", verbose=0)],
        verbose=0,
    )
    assert int(swa.n_models) == 1


def _swag(given):
    assert int(given["swag"].n_models) == 3
    assert given["probabilities"].shape == (8, 3)


# What a page has done when it has run.
CHECK = {
    "README.md": _readme,
    "docs/averaged-model.md": _averaged_model,
    "docs/own-averages.md": _own_averages,
    "docs/swag.md": _swag,
    "docs/checkpoints.md": _checkpoints,
    "docs/distribution.md": _distribution,
    "docs/ema.md": _ema,
    "docs/guides/soups.md": _soups,
    "docs/keras.md": _keras,
}


def _pages_with_code():
    for page in pages.paths():
        if pages.program(pages.read(page)).strip():
            first = page.startswith(("README", "docs/start/"))
            slow = page in SLOW or not (first or compat.KERAS_3)
            marks = [pytest.mark.slow] if slow else []
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
