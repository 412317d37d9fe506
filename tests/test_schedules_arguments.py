"""Arguments that no learning-rate plan takes."""

import pytest

from swa_tf import schedules
from tests.plans import WarmUp

NAN, INF = float("nan"), float("inf")


REAL = "a finite number >= 0"
NOT_REAL = [-0.1, NAN, INF, "0.1", None, True, [0.1], 1j]
WHOLE = "an integer >= 0"
NOT_WHOLE = [-1, 1.5, 2.0, NAN, INF, "1", None, True]
RAMP = (
    schedules.LinearRamp,
    {
        "initial_learning_rate": 0.5,
        "final_learning_rate": 0.1,
        "ramp_start": 2,
        "ramp_steps": 4,
    },
)
PAPER = (
    schedules.paper_plan,
    {"learning_rate": 0.5, "swa_learning_rate": 0.1, "swa_start": 10},
)
PUBLISHED = (
    schedules.published_plan,
    {
        "learning_rate": 0.5,
        "swa_learning_rate": 0.1,
        "swa_start": 5,
        "total_steps": 10,
    },
)
CYCLICAL = (
    schedules.Cyclical,
    {
        "max_learning_rate": 0.5,
        "min_learning_rate": 0.1,
        "period": 4,
        "start": 2,
    },
)
ANNEALED = (
    schedules.SWALearningRate,
    {
        "initial_learning_rate": 0.5,
        "swa_learning_rate": 0.1,
        "swa_start": 2,
        "anneal_steps": 4,
    },
)
BAD = [
    (RAMP, "initial_learning_rate", REAL, NOT_REAL),
    (RAMP, "final_learning_rate", REAL, NOT_REAL),
    (RAMP, "ramp_start", REAL, NOT_REAL),
    (RAMP, "ramp_steps", REAL, NOT_REAL),
    (PAPER, "swa_start", REAL, NOT_REAL),
    (PUBLISHED, "swa_start", WHOLE, NOT_WHOLE),
    (PUBLISHED, "total_steps", WHOLE, NOT_WHOLE),
    (CYCLICAL, "max_learning_rate", REAL, NOT_REAL),
    (CYCLICAL, "min_learning_rate", REAL, NOT_REAL),
    (CYCLICAL, "period", "an integer >= 1", [0, *NOT_WHOLE]),
    (CYCLICAL, "start", WHOLE, NOT_WHOLE),
    (
        ANNEALED,
        "initial_learning_rate",
        f"a LearningRateSchedule, or {REAL}",
        [*NOT_REAL, WarmUp, abs],
    ),
    (ANNEALED, "swa_learning_rate", REAL, NOT_REAL),
    (ANNEALED, "swa_start", WHOLE, NOT_WHOLE),
    (ANNEALED, "anneal_steps", WHOLE, NOT_WHOLE),
    (
        ANNEALED,
        "anneal_strategy",
        '"cos" or "linear"',
        ["cosine", "COS", None, 1, True, ["cos"]],
    ),
]


@pytest.mark.parametrize(
    ("maker", "argument", "wanted", "values"),
    BAD,
    ids=[f"{maker[0].__name__}-{argument}" for maker, argument, *_ in BAD],
)
def test_bad_arguments(maker, argument, wanted, values):
    make, given = maker
    make(**given)
    for value in values:
        with pytest.raises(ValueError, match=f"^`{argument}`") as error:
            make(**{**given, argument: value})
        assert str(error.value) == (
            f"`{argument}` must be {wanted}. Received: {argument}={value!r}"
        )


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True])
def test_plot_schedule_of_no_steps(value):
    with pytest.raises(ValueError, match=r"^`steps`") as error:
        schedules.plot_schedule(abs, value)
    assert str(error.value) == (
        f"`steps` must be an integer >= 1. Received: steps={value!r}"
    )


@pytest.mark.parametrize("schedule", [0.1, None, "cos", schedules.LinearRamp])
@pytest.mark.parametrize(
    ("function", "counted"),
    [
        (schedules.per_epoch, "epoch"),
        (lambda value: schedules.plot_schedule(value, 4), "step"),
    ],
    ids=["per_epoch", "plot_schedule"],
)
def test_what_is_no_schedule(function, counted, schedule):
    with pytest.raises(TypeError, match=r"^`schedule`") as error:
        function(schedule)
    assert str(error.value) == (
        "`schedule` must be a LearningRateSchedule, or a function of the "
        f"{counted}. Received: schedule={schedule!r}"
    )


def test_cycles_with_reversed_bounds():
    with pytest.raises(ValueError, match=r"^`min_learning_rate`") as error:
        schedules.Cyclical(0.1, 0.5, period=4)
    assert str(error.value) == (
        "`min_learning_rate` must be <= max_learning_rate=0.1. "
        "Received: min_learning_rate=0.5"
    )


def test_published_plan_that_ends_before_swa_starts():
    with pytest.raises(ValueError, match=r"^`swa_start`") as error:
        schedules.published_plan(0.1, 0.01, 11, 10)
    assert str(error.value) == (
        "`swa_start` must be <= total_steps=10. Received: swa_start=11"
    )
