"""First calls: which calls are timed, and the cells of the table by hand."""

import pytest
import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost import first_calls, tables, weights
from benchmarks.averaging_cost.first_calls import APPLY, EMA, FORWARD, REFIT
from benchmarks.common.errors import BenchmarkError


def tiny(weights):
    assert weights is None
    return tf.keras.Sequential(
        [
            tf.keras.Input([4, 4, 3]),
            tf.keras.layers.Conv2D(2, 3),
            tf.keras.layers.BatchNormalization(),
        ]
    )


@pytest.fixture(name="measured", scope="module")
def fixture_measured():
    """The figures of the model `tiny`, and the made-up processes behind."""
    calls = []

    def alone(function, *args):
        calls.append(args)
        return function(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.keras.applications, "Tiny", tiny, raising=False)
        return first_calls.measure("Tiny", 2, alone), calls


@pytest.mark.slow
def test_each_call_is_timed(measured):
    found, _ = measured
    assert found["variables"] == 4  # kernel, bias, gamma, beta
    for name, work in first_calls.WORKS.items():
        n_calls = 1 + work.n_next + work.n_later
        assert [len(run) for run in found["works"][name]] == [n_calls] * 2
        assert all(
            seconds > 0.0 for run in found["works"][name] for seconds in run
        )


@pytest.mark.slow
def test_each_first_call_has_a_process_of_its_own(measured):
    _, calls = measured
    names = list(first_calls.WORKS)
    # Turns, the second of which begins with another one.
    assert calls == [("Tiny", name) for name in [*names, *names[1:], names[0]]]


def test_works_do_what_their_names_say(monkeypatch):
    model = tiny(weights=None)
    swa = swa_tf.StochasticWeightAveraging()
    ema = tf.train.ExponentialMovingAverage(0.999)
    monkeypatch.setattr(swa_tf, "StochasticWeightAveraging", lambda: swa)
    monkeypatch.setattr(tf.train, "ExponentialMovingAverage", lambda _: ema)
    works = {n: w.make(model) for n, w in first_calls.WORKS.items()}
    works[APPLY]()
    works[APPLY]()
    assert int(swa.n_models) == 2
    works[EMA]()
    for variable in weights.as_tensorflow(model.trainable_variables):
        assert ema.average(variable) is not None
    norm = model.layers[-1]
    before = norm.moving_mean.numpy()
    works[FORWARD]()
    assert (norm.moving_mean.numpy() != before).all()
    before = norm.moving_mean.numpy()
    works[REFIT]()
    # The images are 0 to 255: moving statistics are still far from theirs.
    assert (abs(norm.moving_mean.numpy()) > 10 * abs(before)).all()


def test_rows_by_hand():
    # Two processes each; of `apply` the longest of the next hundred counts.
    next_calls = [0.01] * 99
    works = {
        FORWARD: [[2.0, 0.1, 0.1, 0.1, 0.1], [4.0, 0.1, 0.1, 0.1, 0.1]],
        REFIT: [[5.0, 0.2, 0.2], [6.0, 0.2, 0.2]],
        EMA: [[0.5, *[0.004] * 20], [1.0, *[0.004] * 20]],
        APPLY: [
            [0.25, *next_calls, 1.0, *[0.002] * 20],
            [0.25, *next_calls, 2.0, *[0.002] * 20],
        ],
    }
    contents = {"first_calls": {"Tiny": {"variables": 4, "works": works}}}
    (sheet,) = tables.sheets(contents)
    assert sheet.title == "First calls, Tiny: 4 variables"
    assert sheet.rows == [
        [FORWARD, "3.000", "", "", "100"],
        # 5 / 2 and 6 / 4.
        [REFIT, "5.500", "2.00", "", "200"],
        [EMA, "0.750", "", "", "4.00"],
        # 0.25 / 0.5 and 0.25 / 1; 1 s and 2 s.
        [APPLY, "0.250", "0.38", "1.500", "2.00"],
    ]


def test_unknown_models_are_refused():
    with pytest.raises(BenchmarkError, match="--first_calls=MobileNet,Nothing"):
        first_calls.names_of_flag("first_calls", ["MobileNet", "Nothing"])
    assert first_calls.names_of_flag("first_calls", []) == []
