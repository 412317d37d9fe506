"""`examples/keras_fit.py` runs as its docstring says, and shows its claim.

In a file of its own, beside the other examples, since it takes a while.
"""

import functools
import gzip
import re

import pytest

from tests.examples.running import accuracies, assert_refused, output_of

pytest.importorskip("matplotlib", reason="the example draws its curves")

# Each test starts TensorFlow anew.
pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"
keras_fit = functools.partial(output_of, "keras_fit")


def logged(output, name):
    """The values of `name` in percent, epoch by epoch, one plan after another.

    Keras logs four decimals.
    """
    found = re.findall(rf" {name}: ([\d.]+)", output)
    return [100 * float(value) for value in found]


def test_default(tmp_path):
    plot = tmp_path / "curves.png"
    output = keras_fit(f"--plot={plot}")
    found = accuracies(output)
    plans = ("constant", "cyclic", "descending")
    assert list(found) == [
        f"{plan}, {weights}"
        for plan in plans
        for weights in ("trained", "averaged")
    ]
    # 97 % is what scikit-learn's own SVC example reaches on these digits.
    assert all(accuracy > 96.0 for accuracy in found.values())
    for plan in plans:
        gain = found[f"{plan}, averaged"] - found[f"{plan}, trained"]
        said = re.search(
            rf"{plan}: averaging changed it by (.+) points", output
        )
        assert float(said[1]) == pytest.approx(gain, abs=0.011)
    # Averaged after each of the epochs 8 to 16, or after 10, 13 and 16.
    epochs = re.findall(r"^Epoch (\d+): averaged (\d+) model", output, re.M)
    each = [(str(8 + i), str(1 + i)) for i in range(9)]
    third = [("10", "1"), ("13", "2"), ("16", "3")]
    assert epochs == each + third + each
    # What is printed at the end is what the last epochs of `fit` have found.
    trained = logged(output, "val_accuracy")
    averaged = logged(output, "swa_val_accuracy")
    assert len(trained) == len(averaged) == 48
    at_end = [way[i] for i in (15, 31, 47) for way in (trained, averaged)]
    assert list(found.values()) == pytest.approx(at_end, abs=0.011)
    assert plot.read_bytes().startswith(PNG)


@pytest.mark.exhaustive
def test_one_epoch_of_real_images(shared_data):
    output = keras_fit(
        f"--data_dir={shared_data / 'mnist'}",
        "--plan=cyclic",
        "--epochs=1",
        "--swa_start=0",
        "--period=1",
    )
    assert "Epoch 1: averaged 1 model" in output
    found = accuracies(output)
    assert list(found) == ["cyclic, trained", "cyclic, averaged"]
    # Ten classes: chance is 10 %. What is averaged is the one model there is,
    # and so differs in batch-norm statistics alone.
    assert all(80.0 < accuracy < 99.0 for accuracy in found.values())
    assert abs(found["cyclic, averaged"] - found["cyclic, trained"]) < 5.0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--swa_start=14", "need `--epochs` >= 17"),
        ("--data_dir=nowhere", "`--data_dir` must be a folder. Received: "),
        ("--plot=nowhere/curves.png", "No such directory: --plot=nowhere"),
        ("more", "Unknown arguments: ['more']"),
    ],
)
def test_bad_flags(flag, message):
    assert_refused(message, "keras_fit", flag)


def test_damaged_file(tmp_path):
    whole = gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + bytes(5))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(whole[:-9])
    assert_refused(
        "t10k-images-idx3-ubyte.gz must be a file of",
        "keras_fit",
        f"--data_dir={tmp_path}",
    )
