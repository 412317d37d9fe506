"""Benchmarks: programs that measure what averaging and refitting do and cost.

    python -m benchmarks.cifar10 --preset=digits
    python -m benchmarks.averaging_cost
    python -m benchmarks.averaging_cost.scaling
    python -m benchmarks.checkpoint_averaging

The first trains a small network within a minute or two, and prints a table of
accuracies. `--help` lists the flags of each.
"""

import os

# TensorFlow reads this when it is first imported. Its start-up notes would
# stand between the reader and the table; warnings and errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
