"""Interrupts at each moment of what the library does."""

import contextlib
import pathlib
import sys

import swa_tf
from swa_tf.averaging import ONE_AT_A_TIME

_HERE = str(pathlib.Path(swa_tf.__file__).parent)


def each_moment(action, every="line"):
    """Runs `action` again and again, with a Ctrl-C one moment later each time.

    Args:
        action: What the library is asked to do.
        every: The moments: each "line" of the library that runs, or each
            "opcode", which is all there are.

    Yields:
        The line at which it came, after each of the interrupts.
    """
    moment = 0
    while True:
        with _interrupt(moment, every) as struck:
            with contextlib.suppress(KeyboardInterrupt):
                action()
        # A trace can raise between the end of a `with` block and its exit,
        # where no signal comes, and leave the lock taken: once.
        with contextlib.suppress(RuntimeError):
            ONE_AT_A_TIME.release()
        if not struck:
            return
        yield struck[0]
        moment += 1


@contextlib.contextmanager
def _interrupt(moment, every):
    struck = []
    left = moment

    def trace(frame, event, argument):
        nonlocal left
        code = frame.f_code
        if not code.co_filename.startswith(_HERE):
            return None
        frame.f_trace_opcodes = every == "opcode"
        if event == every:
            left -= 1
            if left < 0:
                sys.settrace(None)
                struck.append(f"{code.co_name}, line {frame.f_lineno}")
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield struck
    finally:
        sys.settrace(before)
