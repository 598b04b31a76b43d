"""Every trial in a process of its own, forked from a server that has the imports done.

A trial that crashes, hangs or eats the memory takes nothing with it, and its peak memory is its
own. The server is an interpreter apart and not a fork of the caller: a script that calls embench
needs no ``if __name__ == "__main__"``, and no thread pool of the caller is inherited.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from embench.types import Record, Trial

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class TrialServer:
    """Runs trials one after the other; made by `trial_server`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, trial: Trial) -> Record:
        """Run a trial to its record; a process that died gives a record, too.

        Raises:
            RuntimeError: The server itself has died, which no trial can bring about.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(asdict(trial)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError("the process that starts the trials died; run the command again")
        return _record(trial, json.loads(reply))


@contextmanager
def trial_server(threads: int) -> Iterator[TrialServer]:
    """Start a server; ``threads`` is set for all numerical libraries before it imports them.

    It lives in a session of its own, so that Ctrl-C reaches the caller alone, and ends itself and
    the trial under way as soon as the caller is gone, however it went.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "embench.measuring.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
        start_new_session=True,
    ) as process:
        assert process.stdin
        process.stdin.write(json.dumps(sys.path) + "\n")
        yield TrialServer(process)


def _record(trial: Trial, reply: Mapping[str, Any]) -> Record:
    """The trial's own record, or one that says how its process died."""
    if reply["record"] is not None:
        return Record.from_json(reply["record"])
    status, message = _death(trial, reply)
    last_words = reply["stderr"].strip().rpartition("\n")[2]
    if last_words and status == "crashed":
        message = f"{message}; its last words: {last_words}"
    return Record(trial=trial, status=status, message=message, environment=reply["environment"])


def _death(trial: Trial, reply: Mapping[str, Any]) -> tuple[str, str]:
    """Status and sentence for a process that left no record."""
    code = reply["exit_code"]
    if reply["overdue"] or code == -signal.SIGALRM:
        return "timeout", f"cut off: no end within {trial.time_limit:g} s (raise the time limit?)"
    if code == -signal.SIGKILL:
        return "out-of-memory", "the system killed the process, most often for want of memory"
    if code < 0:
        return "crashed", f"the process died of signal {-code} ({signal.Signals(-code).name})"
    return "crashed", f"the process ended itself with exit code {code}"
