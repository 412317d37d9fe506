"""Helpers of the tests that choose checkpoints."""

import json
import os

import numpy as np

from tests import checkpoint_files
from tests.checkpoint_files import OBJECT


def write_all(folder, values, form=OBJECT):
    """`{name: arrays}`, or `{name: number}` of one weight `w`; the paths."""
    paths = []
    os.makedirs(folder, exist_ok=True)
    for name, arrays in values.items():
        if not isinstance(arrays, dict):
            arrays = {"w": np.float32(arrays)}
        paths.append(checkpoint_files.path_of(form, str(folder), name))
        checkpoint_files.write(form, paths[-1], arrays)
    return paths


def read_one(path, form=OBJECT, like=None):
    like = like or {"w": np.float32(0)}
    arrays = checkpoint_files.read(form, str(path), like)
    return arrays["w"] if like.keys() == {"w"} else arrays


def make_run(folder, numbers=(1, 2, 10)):
    return write_all(folder, {f"ckpt-{n}": n for n in numbers})


def tree_of(folder):
    """All that is below a folder, hidden files too."""
    return sorted(str(path) for path in folder.rglob("*"))


# What is told.


def strict_json(path):
    """A JSON file, without Python's own words for NaN and infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    with open(path, encoding="utf-8") as file:
        return json.load(file, parse_constant=refuse)
