"""The one error that a user of the benchmarks is expected to meet."""


class BenchmarkError(ValueError):
    """A mistake in the flags, the data or the output directory.

    Its message stands by itself: it names the flag or the file, what was
    wanted and what was received, and is printed without a traceback.
    """
