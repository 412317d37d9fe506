"""The time that `import swa_tf` adds to `import tensorflow`."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_PROGRAM = """
import json, sys, time
start = time.perf_counter()
import tensorflow
middle = time.perf_counter()
before = set(sys.modules)
import swa_tf
end = time.perf_counter()
packages = [{m.split(".")[0] for m in ms} for ms in (sys.modules, before)]
more = sorted(packages[0] - packages[1] - {"swa_tf"})
print(json.dumps([middle - start, end - middle, more]))
"""


def measure(rounds: int) -> dict[str, Any]:
    """Times the imports, in fresh processes, and names what comes with them.

    Args:
        rounds: The number of processes.

    Returns:
        `tensorflow` and `swa_tf`, the seconds of each; `more`, the packages
        that `swa_tf` imported and TensorFlow had not.
    """
    root = pathlib.Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = dict(os.environ)
    # As where it is installed: compiled already.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _PROGRAM],
                env={**environment, "PYTHONPATH": path.rstrip(os.pathsep)},
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ).stdout
        )
        for _ in range(rounds + 1)
    ][1:]  # The first one compiles, and fills the page cache.
    tensorflow, swa, more = zip(*runs)
    return {"tensorflow": tensorflow, "swa_tf": swa, "more": more[-1]}
