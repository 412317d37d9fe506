"""The five rules of import in `docs/architecture.md` are kept.

Each rule is also broken in a small made-up tree, which must be found out.
"""

import pytest

from tests import import_rules
from tests.conftest import ROOT, SOURCES

RULES = import_rules.read_rules(
    (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
)


def test_the_package_keeps_the_rules():
    assert import_rules.broken(import_rules.read_sources(SOURCES), RULES) == []


def test_the_rules_are_those_that_were_settled():
    basic = ["support", "averaging", "batch_norm", "optimizers", "schedules"]
    assert list(RULES)[: len(basic)] == basic
    assert RULES["support"] == []
    assert all(RULES[room] == ["support"] for room in basic[1:])
    beside = {room: set(RULES[room]) - {"support"} for room in RULES}
    assert beside["parameters"] == {"averaging"}
    assert beside["swapping"] == {"averaging", "batch_norm"}
    assert beside["checkpoints"] == {"averaging"}
    assert beside["callbacks"] == {
        *("averaging", "swapping", "batch_norm", "schedules")
    }


def test_a_room_imports_only_rooms_above_it():
    above = set()
    for room, allowed in RULES.items():
        assert above.issuperset(allowed), room
        above.add(room)


TREE = {
    "swa_tf/__init__.py": """
import importlib
from swa_tf import schedules
from swa_tf.averaging import Average
from swa_tf.support import compat
__version__ = "0.1.0"
__all__ = ["Average", "__version__", "schedules"]
def __getattr__(name):
    return importlib.import_module(f"swa_tf.{name}")
""",
    "swa_tf/support/__init__.py": "from swa_tf.support import checks, compat",
    "swa_tf/support/compat.py": """
import tensorflow as tf
KERAS_3 = tf.keras.__version__.startswith("3.")
addons = __import__("tensorflow_addons")
""",
    "swa_tf/support/checks.py": "from swa_tf.support import compat",
    "swa_tf/support/files.py": "import os",
    "swa_tf/averaging/__init__.py": "from .average import Average",
    "swa_tf/averaging/average.py": """
import swa_tf.support
from swa_tf.averaging.shadow import Shadow
from swa_tf.support import checks, compat
class Average(Shadow):
    "tensorflow_addons"
    new = compat.KERAS_3
""",
    "swa_tf/averaging/shadow.py": "class Shadow: pass",
    "swa_tf/schedules.py": "from swa_tf import support",
    "swa_tf/swapping/__init__.py": "from swa_tf.averaging import Average",
}
TREE_RULES = {
    "support": [],
    "averaging": ["support"],
    "schedules": ["support"],
    "swapping": ["support", "averaging"],
    "__init__": ["support", "averaging", "schedules", "swapping"],
}
SHADOW = "swa_tf/averaging/shadow.py"
SWAPPING = "swa_tf/swapping/__init__.py"
ROOM = "averaging may not import"
ENTERED = "is entered by its __init__ alone"
ROOT_IMPORTED = "it imports the root"
VERSIONS = "is for swa_tf/support/compat.py alone"


def test_a_tree_that_keeps_the_rules():
    assert import_rules.broken(TREE, TREE_RULES) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        # A room imports what its rule names, however it does.
        (SHADOW, "import swa_tf.schedules", ROOM),
        (SHADOW, "from swa_tf import schedules", ROOM),
        (SHADOW, "from swa_tf.swapping import swap", ROOM),
        (SHADOW, "from .. import schedules", ROOM),
        (SHADOW, "from ..swapping import swap", ROOM),
        (SHADOW, "def f():\n    import swa_tf.schedules", ROOM),
        (SHADOW, "if TYPE_CHECKING:\n    from swa_tf import schedules", ROOM),
        (SHADOW, "importlib.import_module('swa_tf.schedules')", ROOM),
        (SHADOW, "import_module('swa_tf.schedules')", ROOM),
        (SHADOW, "import_module(name)", "a computed import"),
        (SHADOW, "import_module('.schedules', 'swa_tf')", "a computed import"),
        ("swa_tf/support/checks.py", "import swa_tf.averaging", "may not"),
        ("swa_tf/schedules.py", "import swa_tf.averaging", "may not"),
        (SHADOW, "from swa_tf.nothing import x", "there is no"),
        ("swa_tf/__init__.py", "import_module('swa_tf.x')", "there is no"),
        # A room is entered by its `__init__`.
        (SWAPPING, "import swa_tf.averaging.shadow", ENTERED),
        (SWAPPING, "from swa_tf.averaging.shadow import Shadow", ENTERED),
        (SWAPPING, "from swa_tf.averaging import shadow", ENTERED),
        (SWAPPING, "from swa_tf.support import files", ENTERED),
        (SWAPPING, "from ..averaging.shadow import Shadow", ENTERED),
        (SWAPPING, "import_module('swa_tf.averaging.shadow')", ENTERED),
        # Nobody imports the root.
        (SWAPPING, "import swa_tf", ROOT_IMPORTED),
        (SWAPPING, "from swa_tf import Average", ROOT_IMPORTED),
        (SWAPPING, "from .. import Average", ROOT_IMPORTED),
        # Nothing runs in circles: in a room, through its `__init__`.
        (SHADOW, "from swa_tf.averaging.average import Average", "a circle"),
        (SHADOW, "def f():\n    from . import average", "a circle"),
        (SHADOW, "from swa_tf.averaging import Average", "a circle"),
        # One file knows versions, and none uses private modules.
        (SHADOW, "new = tf.__version__ > '2.15'", VERSIONS),
        (SHADOW, "new = getattr(tf, '__version__')", VERSIONS),
        (SHADOW, "new = tf.version.VERSION", VERSIONS),
        (SHADOW, "KERAS_3 = True", VERSIONS),
        (SHADOW, "import tensorflow_addons as tfa", VERSIONS),
        (SHADOW, "from tf_keras import layers", VERSIONS),
        (SHADOW, "tfa = import_module('tensorflow_addons')", VERSIONS),
        (SHADOW, "from importlib import metadata", VERSIONS),
        (SHADOW, "from tensorflow.python import eager", "is private"),
        (SHADOW, "import keras.src.layers", "is private"),
        (SHADOW, "from keras import src", "is private"),
        (SHADOW, "eager = tf.python.eager", "is private"),
        (SHADOW, "eager = 'tensorflow.python.eager'", "is private"),
        (SHADOW, "import_module('tensorflow.python.eager')", "is private"),
        (import_rules.STACK, "import tensorflow.python.eager", "is private"),
        # Files: none private at the top level, none long, each in a room.
        ("swa_tf/_names.py", "", "private, and at the top level"),
        ("swa_tf/_files/names.py", "", "private, and at the top level"),
        ("swa_tf/extra.py", "", "a room without a rule"),
        (SHADOW, "\n" * 501, "501 lines"),
    ],
)
def test_a_broken_rule_is_found(path, source, message):
    found = import_rules.broken({**TREE, path: source}, TREE_RULES)
    assert any(message in line for line in found), found


def test_a_circle_among_rooms_is_found():
    """The rules themselves must not allow one; if they did, files show it."""
    rules = {**TREE_RULES, "averaging": ["support", "swapping"]}
    tree = {**TREE, SHADOW: "import swa_tf.swapping"}
    (line,) = import_rules.broken(tree, rules)
    assert line.startswith("a circle: ")
    assert SHADOW in line
    assert SWAPPING in line


def test_a_rule_without_a_room_is_found():
    (line,) = import_rules.broken(TREE, {**TREE_RULES, "soups": []})
    assert "soups: a room without a rule, or a rule without a room" in line
