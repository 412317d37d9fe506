"""Measurements of the benchmarks: turns, medians, ratios, memory, processes."""

import os
import time

import numpy as np
import pytest

from benchmarks.common import timing

SIZE = 64 * 2**20


@pytest.fixture(name="clock")
def fixture_clock(monkeypatch):
    """A clock that stands still but for `clock.sleep`."""

    class Clock:
        now = 100.0

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_summary_and_ratio_by_hand():
    assert timing.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    # Each of one round: 2, 1.5 and 0.5; not the ratio of medians, 3 / 2.
    assert timing.ratio([2.0, 3.0, 4.0], [1.0, 2.0, 8.0]) == 1.5


def test_turns_begin_with_another_each_round():
    calls = []
    found = timing.in_turns(
        {name: lambda name=name: calls.append(name) or name for name in "abc"},
        rounds=4,
    )
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert found == {"a": ["a"] * 4, "b": ["b"] * 4, "c": ["c"] * 4}


def test_what_comes_before_is_not_timed(clock):
    step = timing.Step(lambda: clock.sleep(2.0), lambda: clock.sleep(50.0))
    assert step.seconds() == 2.0
    assert timing.times({"a": step}, rounds=2) == {"a": [2.0, 2.0]}
    assert clock.now == 100.0 + 3 * 52.0


def test_first_calls_are_apart_from_those_that_count(clock):
    durations = iter([7.0, 3.0, 5.0, 1.0, 2.0])

    def make():
        clock.sleep(10.0)
        return timing.Step(lambda: clock.sleep(next(durations)))

    found = timing.measure({"a": make}, rounds=2, warm_up=3)["a"]
    assert found["first"] == 17.0
    assert found["early"] == 5.0
    assert found["times"] == [1.0, 2.0]


def test_a_step_may_need_more_warming_up(clock):
    durations = iter([7.0, 3.0, 5.0, 6.0, 1.0])
    step = timing.Step(lambda: clock.sleep(next(durations)), warm_up=4)
    found = timing.measure({"a": lambda: step}, rounds=1, warm_up=2)["a"]
    assert found["early"] == 6.0
    assert found["times"] == [1.0]


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="needs Linux"
)
def test_memory():
    # In a process of its own: in this one, what other tests have left may be
    # freed meanwhile, and the process grows by less.
    found = timing.alone(_memory_of_a_step)
    slack = 16 * 2**20
    assert found["peak"] == pytest.approx(3 * SIZE, abs=slack)
    assert found["growth"] == pytest.approx(2 * SIZE, abs=slack)


def _memory_of_a_step():
    kept = []

    def make():
        kept.append(np.ones(SIZE, np.uint8))
        return timing.Step(lambda: np.ones(2 * SIZE, np.uint8))

    return timing.measure({"a": make}, rounds=0, warm_up=2)["a"]


def test_alone_is_another_process():
    assert timing.alone(os.getpid) != os.getpid()
