"""The fixtures of the tests of the command line."""

from tests.command import command, run, written  # noqa: F401
