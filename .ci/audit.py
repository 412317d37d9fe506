"""Asks pip-audit for known vulnerabilities of what is installed beside it.

Usage: python .ci/audit.py. Where the data cannot be had it says so, and passes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

_NO_CONNECTION = re.compile(r"ConnectionError|ConnectTimeout|Max retries")


def judged(dependencies: list[dict[str, Any]]) -> tuple[str, bool]:
    """What pip-audit's report says, and whether it is good enough to pass.

    >>> judged([{"name": "a", "version": "1", "vulns": []}])
    ('1 packages audited, nothing known against them', True)
    """
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        for package in dependencies
        for vulnerability in package.get("vulns", ())
    ]
    unknown = [p["name"] for p in dependencies if "skip_reason" in p]
    n_audited = len(dependencies) - len(unknown)
    if found:
        return "\n".join(found), False
    if not n_audited:
        return "NOT audited: no data on any package can be had here", True
    message = f"{n_audited} packages audited, nothing known against them"
    if unknown:
        message += f"; no data on {', '.join(unknown)}"
    return message, True


def outcome(status: int, output: str, errors: str) -> tuple[str, bool]:
    """The same of all that pip-audit printed, and its exit status."""
    try:
        return judged(json.loads(output)["dependencies"])
    except (KeyError, ValueError):
        last = " ".join(errors.strip().splitlines()[-1:])
        if _NO_CONNECTION.search(errors):
            return f"NOT audited: {last}", True
        return f"pip-audit failed, with exit status {status}: {last}", False


def main() -> bool:
    command = "-m pip_audit --format=json --progress-spinner=off --timeout=10"
    result = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True
    )
    message, passed = outcome(result.returncode, result.stdout, result.stderr)
    print(message)
    return passed


if __name__ == "__main__":
    sys.exit(not main())
