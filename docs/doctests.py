"""Examples in docstrings as code blocks of the site, for mkdocs.yml.

Markdown would take `>>>` for quotations in quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# An example ends at an empty line.
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)


class Doctests(griffe.Extension):
    """Puts fences around each example."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(
                "```pycon\n\\g<0>\n```", obj.docstring.value
            )
