"""The cells of the tables, worked out by hand."""

from benchmarks.averaging_cost import tables
from benchmarks.averaging_cost.averagers import FLOOR, SWAPPING


def test_rows_by_hand():
    def way(times, **more):
        return {
            "times": times,
            "floor": [1.0, 2.0, 1.0],
            "apply": [2.0, 2.0, 2.0],
            "first": 0.5,
            "early": 0.25,
            "peak": 1200,
            **more,
        }

    found = {
        "parameters": 100,
        "variables": 2,
        "ways": {
            FLOOR: way([1.0, 2.0, 1.0]),
            "Keras use_ema": way([6.0, 7.0, 8.0], base=[2.0, 2.0, 2.0]),
        },
        "absent": {"tfa SWA": "tensorflow_addons"},
    }
    times, memory = tables.sheets({"averaging": {"m": found}})
    assert times.title == "Averaging m: 100 parameters in 2 variables"
    assert times.rows == [
        [FLOOR, "1000", "1000 to 1500", "1.00", "0.500"],
        # 4, 5, 6 s beyond; over the floor 4, 2.5, 6; over apply 2, 2.5, 3.
        ["+ Keras use_ema", "5000", "4500 to 5500", "4.00", "2.50"],
    ]
    assert times.note.endswith("\nNot installed: tensorflow_addons.")
    assert memory.rows[0] == [FLOOR, "0.500", "0.250", "12.00", "0"]


def test_swaps_by_hand():
    ways = {
        name: {"times": [seconds] * 3, "growth": 50}
        for name, seconds in zip(SWAPPING, (0.1, 0.004, 0.2, 0.3))
    }
    contents = {"swapping": {"m": {"parameters": 100, "ways": ways}}}
    (sheet,) = tables.sheets(contents)
    assert [row[3:] for row in sheet.rows] == [
        ["1.00", "", ""],
        ["0.040", "", "0.500"],
        ["", "1.00", ""],
        ["", "1.50", ""],
    ]
