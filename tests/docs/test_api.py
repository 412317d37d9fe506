"""The API reference has every public name once."""

import inspect
import re

import swa_tf
from tests.docs import pages


def _public():
    for name in swa_tf.__all__:
        value = getattr(swa_tf, name)
        if not inspect.ismodule(value):
            yield f"swa_tf.{name}"
            continue
        for own, member in vars(value).items():
            if (
                not own.startswith("_")
                and getattr(member, "__module__", None) == value.__name__
            ):
                yield f"swa_tf.{name}.{own}"


def test_reference_has_every_public_name_once():
    documented = [
        name
        for page in pages.paths()
        for name in re.findall(r"^::: (\S+)$", pages.read(page), re.M)
    ]
    # `greedy_soup` is in its module too.
    wanted = {*_public()} - {"swa_tf.__version__", "swa_tf.soups.greedy_soup"}
    assert sorted(documented) == sorted(wanted)
