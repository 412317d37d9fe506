"""Benchmarks: what weight averaging and batch-norm refitting are worth.

`python -m benchmarks.cifar10 --preset=digits` trains a small network within a
minute or two and prints the table. `cifar10.py` says more.
"""

import os

# TensorFlow reads this when it is first imported. Its start-up notes would
# stand between the reader and the table; warnings and errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
