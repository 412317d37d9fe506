"""The digits with which numbers are shown."""

from benchmarks.averaging_cost import report


def test_numbers():
    shown = [report.digits(x) for x in (0.0126, 1.255, 12.55, 125.5)]
    assert shown == ["0.013", "1.25", "12.6", "126"]
    assert report.digits(-3.14159) == "-3.14"
    assert report.spread([0.001, 0.002, 0.003, 0.004, 0.005]) == [
        "3.00",
        "2.00 to 4.00",
    ]
