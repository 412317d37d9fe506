"""The pages of the documentation, and the code that runs of each.

The rule: of a page these lines run, in their order, in one namespace and in a
folder of their own, after `tests/docs/setup.py` has made what the page takes
for granted:

- every block that begins with ```python;
- the code in the last column of a table whose heading there is "our line";
- in docs/, every command `swa-average-checkpoints` in a block ```bash.
"""

import re

from tests.conftest import ROOT

COMMAND = "swa-average-checkpoints"
_CODE = re.compile(r"`([^`]+)`")


def paths():
    """Every page, as its path from the root of the project."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def program(text):
    """Returns the Python of a page, each line at its number in the page."""
    lines, language, runs = [], None, False
    for line in text.splitlines():
        kept = ""
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language == "python":
            kept = line
        elif language == "bash" and line.startswith(COMMAND):
            kept = f"run_command({line!r})"
        elif language is None and line.startswith("|"):
            last = line.strip("| ").split(" | ")[-1]
            if last == "our line":
                runs = True
            elif runs:
                kept = "; ".join(_CODE.findall(last))
        else:
            runs = False
        lines.append(kept)
    return "\n".join(lines) + "\n"


def links(text):
    """The targets of the links and pictures of a page, without code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", _CODE.sub("", text))
