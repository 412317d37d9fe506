"""The commands of the README run as they stand; its code is in tests/docs."""

import json
import pathlib
import re
import subprocess

import pytest

from benchmarks.cifar10 import report

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("number", [0, 1])
def test_first_bash_blocks_are_one_command_each(number):
    command = _blocks("bash")[number].replace("\\\n", " ")
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv .venv && ")
    subprocess.run(["bash", "-n", "-c", command], check=True)


def test_first_commands_run_the_benchmark_and_the_tests():
    benchmark, tests = _blocks("bash")[:2]
    assert "-m benchmarks.cifar10 --preset=digits" in benchmark
    assert "-m pytest" in tests


def test_printed_table_is_the_one_of_the_run_that_is_kept():
    kept = ROOT / "benchmarks/results/table/digits/momentumw-seed-0.json"
    text = report.markdown(json.loads(kept.read_text(encoding="utf-8")))
    table = "\n".join(re.findall(r"^\|.*\|$", text, re.M))
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert f"\n\n{table}\n\n" in page
