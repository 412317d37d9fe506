"""`examples/vgg_cifar10.py` runs as its docstring says, and shows its claim.

In a file of its own, beside the other examples, since it takes a while.
"""

import functools
import re

import pytest

from tests.examples.running import accuracies, assert_refused, output_of

pytest.importorskip("matplotlib", reason="the example draws its curves")

# Each test starts TensorFlow anew.
pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"
vgg = functools.partial(output_of, "vgg_cifar10")
MODELS = ["last", "best validation", "SWA"]
STEPS = 35  # Of an epoch with 1,150 images in batches of 32.


def losses(output):
    """Returns the losses of each epoch: trained, and later averaged."""
    lines = re.findall(r"^epoch +\d+  validation loss: (.+)$", output, re.M)
    return [
        [float(value) for value in re.findall(r"\d+\.\d+", line)]
        for line in lines
    ]


def test_default(tmp_path):
    plot = tmp_path / "curves.png"
    output = vgg(f"--plot={plot}")
    found = accuracies(output)
    assert list(found) == MODELS
    gain = found["SWA"] - found["best validation"]
    assert f"averaging gained {gain:+.2f} points over" in output
    # 97 % is what scikit-learn's own SVC example reaches on these digits.
    assert found["SWA"] > 97.0
    validation = losses(output)
    unaveraged = 500 // STEPS
    assert [len(values) for values in validation] == (
        [1] * unaveraged + [2] * (30 - unaveraged)
    )
    # The average of many epochs moves less than the weights do.
    trained, averaged = zip(*validation[20:])
    assert max(averaged) - min(averaged) < max(trained) - min(trained)
    assert plot.read_bytes().startswith(PNG)


def test_what_is_compared():
    """Training that ends with the best epoch has its weights as its last.

    So has the average that begins with the last step of all.
    """
    # A rate so high that the loss goes up now and then.
    flags = ("--width=4", "--learning_rate=0.02")
    whole = vgg(*flags, "--epochs=6", "--swa_start=0")
    trained = [values[0] for values in losses(whole)]
    best = trained.index(min(trained))
    last_step = STEPS * (best + 1) - 1
    ended = vgg(*flags, f"--epochs={best + 1}", f"--swa_start={last_step}")
    *before, at_the_end = losses(ended)
    assert before == [[loss] for loss in trained[:best]]
    assert at_the_end == [trained[best]] * 2
    expected = accuracies(whole)["best validation"]
    assert accuracies(ended) == dict.fromkeys(MODELS, expected)


@pytest.mark.exhaustive
def test_real_images(shared_data):
    output = vgg(
        "--dataset=cifar10",
        f"--data_dir={shared_data}",
        "--max_samples=2000",
        "--width=8",
        "--epochs=4",
        "--swa_start=100",
    )
    found = accuracies(output)
    assert list(found) == MODELS
    # Ten classes of equal size: chance is 10 %.
    assert all(20.0 < accuracy < 60.0 for accuracy in found.values())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--swa_start=1050", "`--swa_start` must be less than the 1050 steps"),
        ("--width=0", "`--width` must be >= 1"),
        ("--plot=nowhere/curves.png", "No such directory: --plot=nowhere"),
    ],
)
def test_bad_flags(flag, message):
    assert_refused(message, "vgg_cifar10", flag)
