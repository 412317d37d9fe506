"""`examples/parameter_dictionary.py` runs as its docstring says."""

import functools
import gzip
import re

import numpy as np
import pytest

from tests.examples.running import accuracies, assert_refused, output_of
from tests.fitting import exhaustive

NAME = "parameter_dictionary"
MODELS = [
    "trained",
    "averaged",
    "averaged, reset",
    "averaged, by hand",
    "averaged, refit",
]
example = functools.partial(output_of, NAME)


def checked(output):
    found = accuracies(output)
    assert list(found) == MODELS
    assert found["averaged, refit"] == found["averaged, by hand"]
    assert found["averaged, refit"] > found["averaged, reset"]
    verdict = re.search(r"^by hand and refit agree to (\S+) \(", output, re.M)
    assert float(verdict.group(1)) <= 1e-5
    return found


@pytest.mark.parametrize(
    "flags",
    [
        exhaustive([]),
        ["--epochs=3", "--average_epochs=3"],
    ],
)
def test_digits(flags):
    found = checked(example(*flags))
    # 450 images test; linear models of these pixels reach 95 to 97 %.
    assert all(found[name] > 94.0 for name in MODELS if "reset" not in name)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_one_epoch_of_real_images(shared_data):
    found = checked(
        example(
            "--dataset=mnist",
            f"--data_dir={shared_data / 'mnist'}",
            "--epochs=1",
            "--average_epochs=1",
        )
    )
    # Ten classes: chance is 10 %; linear models reach 92 % of all of MNIST.
    assert 80.0 < found["averaged, refit"] < 93.0
    # The average of one model is that model.
    assert found["averaged"] == found["trained"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["more"], "Unknown arguments: ['more']"),
        (
            ["--dataset=mnist", "--data_dir=nowhere"],
            "`--data_dir` must be a folder. Received: --data_dir=nowhere",
        ),
    ],
)
def test_bad_flags(flags, message):
    assert_refused(message, NAME, *flags)


@pytest.mark.slow
def test_damaged_file(tmp_path):
    header = np.array([5, 8, 8], ">u4").tobytes()
    whole = gzip.compress(b"\0\0\x08\x03" + header + bytes(5 * 64))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(whole[:-9])
    assert_refused(
        "t10k-images-idx3-ubyte.gz must be a file of MNIST",
        NAME,
        "--dataset=mnist",
        f"--data_dir={tmp_path}",
    )
