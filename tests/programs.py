"""Programs in processes of their own, without the seconds of a start.

They are forked from one process that has imported TensorFlow and `swa_tf`, and
has run nothing of them: what they print, write and exit with is as ever.
"""

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

_SERVER = """
import contextlib, gc, importlib, json, os, runpy, signal, sys
import tensorflow as tf
tf.keras.Model, tf.compat.v1.keras  # some are imported on first use
for name in ("absl.app", "matplotlib.figure", "rich.table", "scipy.io",
             "sklearn.datasets", "sklearn.model_selection", "swa_tf"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
gc.freeze()  # else a second passes at each exit over what is imported here

signals = {signal.SIGTERM, signal.SIGINT}
for line in sys.stdin:
    job = json.loads(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if not child:
        break
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    print(child, flush=True)
    sys.stdin.readline()  # till then it can be sent signals
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(job["cwd"])
for number, file in enumerate([os.devnull, job["stdout"], job["stderr"]]):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
sys.argv = ["", *job["arguments"]]
# As in a terminal, also where a shell ignores it: in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
if "module" in job:
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
else:
    exec(job["code"], {"__name__": "__main__"})
"""


class Program:
    """One that has been started; the next is started when it has ended.

    Args:
        arguments: Those of its command line.
        cwd: The folder it runs in.
        program: `module`, a name, or `code`, Python.
    """

    def __init__(self, arguments, cwd=ROOT, **program):
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [
            os.path.join(self._folder.name, name)
            for name in ("stdout", "stderr")
        ]
        for path in self._printed:  # it may be killed before it opens them
            open(path, "w", encoding="utf-8").close()
        job = {
            "arguments": [os.fspath(argument) for argument in arguments],
            "cwd": os.fspath(cwd),
            "stdout": self._printed[0],
            "stderr": self._printed[1],
            **program,
        }
        _tell(json.dumps(job))
        self.pid = _number()
        self.returncode = None

    def wait(self):
        """Waits for the end; returns the output and the exit status."""
        _tell("")
        self.returncode = _number()
        texts = []
        for path in self._printed:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.pid, self.returncode, *texts)


def run_module(module, *arguments, cwd=ROOT):
    """`python -m module arguments`, from start to end."""
    return Program(arguments, cwd, module=module).wait()


def run_code(code, *arguments, cwd=ROOT):
    """`python -c code arguments`, from start to end."""
    return Program(arguments, cwd, code=code).wait()


@functools.cache
def _server():
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def _tell(line):
    _server().stdin.write(line + "\n")
    _server().stdin.flush()


def _number():
    line = _server().stdout.readline()
    if not line:
        raise RuntimeError("the process that starts programs has ended")
    return int(line)
