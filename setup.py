"""Packaging of swa_tf. Tool settings are in `pyproject.toml`."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "swa_tf" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

# Every lower bound is a version that the tests pass with: `.ci/run` installs
# them together with TensorFlow 2.15, by `.ci/oldest_versions.py`.

# TensorFlow Addons ended in 2024: its last release works with TensorFlow 2.15,
# whose last Python is 3.11. Without this extra pip takes the newest TensorFlow.
ADDONS = ["tensorflow==2.15.*", "tensorflow-addons==0.23.*"]
# Each tf_keras asks for the TensorFlow of its own number, which bounds it; so
# it is not in `test`, which is also installed beside `addons`.
LEGACY = ["tf_keras"]
EXAMPLES = ["matplotlib>=3.7", "scikit-learn>=1.2", "scipy>=1.10"]
BENCHMARKS = [*EXAMPLES, "tensorboard>=2.15", "tqdm>=4.64"]
TEST = [
    *BENCHMARKS,
    "hypothesis>=6.60",
    "ipykernel>=6.25",
    "nbclient>=0.8",
    "nbformat>=5.7",
    "pytest>=8.0",
    "pytest-xdist>=3.0.2",
]
DEV = [*TEST, "build", "mypy", "pip-audit", "ruff", "twine"]
DOCS = [
    "mkdocs-material>=9.6",
    "mkdocs-same-dir>=0.1.3",
    "mkdocstrings[python]>=0.30",
    "ruff",  # breaks the lines of signatures
]

setup(
    name="swa-tf",
    version=VERSION,
    description="Weight averaging for TensorFlow, with batch-norm refitting",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["swa_tf", "swa_tf.*"]),
    package_data={"swa_tf": ["py.typed"]},
    zip_safe=False,
    python_requires=">=3.9",
    install_requires=[
        "absl-py>=1.4",
        "h5py>=3.12.1",
        "numpy>=1.24",
        "rich>=13.0",
        "tensorflow>=2.15",
    ],
    entry_points={
        "console_scripts": [
            "swa-average-checkpoints = swa_tf.average_checkpoints_main:run"
        ]
    },
    extras_require={
        "addons": ADDONS,
        "benchmarks": BENCHMARKS,
        "dev": DEV,
        "docs": DOCS,
        "examples": EXAMPLES,
        "legacy": LEGACY,
        "test": TEST,
    },
    keywords=[
        "averaging",
        "batch normalization",
        "keras",
        "stochastic weight averaging",
        "swa",
        "tensorflow",
    ],
    # The operating system and the Pythons are those that `.ci/run exhaustive`
    # tries.
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
