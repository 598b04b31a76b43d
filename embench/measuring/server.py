"""The process that forks one child per trial: ``python -m embench.measuring.server``.

The first line on stdin is the caller's ``sys.path``, every other one a trial, all as JSON. For
each trial a line goes out on stdout: the child's record, or how it died. A closed stdin means that
the caller is gone: the child is killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import IO, Any, NoReturn

from embench import registry
from embench.measuring.environment import describe
from embench.measuring.trial import run_trial
from embench.types import Trial

OVERDUE_LIMITS = 10
OVERDUE_SECONDS = 60
"""A child that lives longer than OVERDUE_LIMITS time limits and OVERDUE_SECONDS is killed. Its fits
are cut off much earlier by its own alarm; this is for one that hangs elsewhere."""

LAST_WORDS = 2000
"""Bytes kept of what a child wrote to stderr."""


def main() -> None:
    """Serve until stdin closes."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    environment = describe()
    # The caller finds its own models there; never before the libraries.
    sys.path += [path for path in json.loads(sys.stdin.readline()) if path not in sys.path]
    # Imported once, so that no child pays for it. Imports only: a thread pool or a CUDA context
    # made before a fork is broken after it.
    registry.models(), registry.datasets()
    gc.freeze()  # what the children inherit is never looked through again
    while line := sys.stdin.readline():
        trial = Trial.from_json(json.loads(line))
        _import_late_ones(trial)
        reply = _serve(trial)
        replies.write(json.dumps({**reply, "environment": environment}) + "\n")
        replies.flush()


def _import_late_ones(trial: Trial) -> None:
    """Modules that a model, by its ``late_imports``, would else import in its first fit."""
    with suppress(Exception):  # what is wrong with it is the child's to say
        for module in getattr(registry.load("model", trial.model.name), "late_imports", ()):
            importlib.import_module(module)


def _serve(trial: Trial) -> dict[str, Any]:
    """Fork, wait, and tell what the child left behind."""
    with tempfile.TemporaryFile("w+") as record, tempfile.TemporaryFile("w+") as stderr:
        child = os.fork()
        if child == 0:
            _be_the_child(trial, record, stderr)
        overdue = _wait(child, OVERDUE_SECONDS + OVERDUE_LIMITS * trial.time_limit)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return {
            "record": _whole_json(record),
            "exit_code": os.waitstatus_to_exitcode(status),
            "overdue": overdue,
            "stderr": _tail(stderr),
        }


def _be_the_child(trial: Trial, record: IO[str], stderr: IO[str]) -> NoReturn:
    """Run the trial in a session of its own, leave its record in the file, and go."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stderr.fileno(), 2)
        json.dump(run_trial(trial, disposable=True).to_json(), record)
        record.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _wait(child: int, seconds: float) -> bool:
    """Wait for the child; True if it had to be given up. Ends the server if the caller is gone."""
    descriptor = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([descriptor, sys.stdin], [], [], seconds)
    finally:
        os.close(descriptor)
    if sys.stdin in ended:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os._exit(0)
    return not ended


def _whole_json(file: IO[str]) -> dict[str, Any] | None:
    """What the child wrote, or None if it did not get to the end."""
    file.seek(0)
    try:
        return json.loads(file.read())
    except json.JSONDecodeError:
        return None


def _tail(file: IO[str]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace")


if __name__ == "__main__":
    main()
