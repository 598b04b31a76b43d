"""Every trial in a process of its own, forked from a server that has the imports done.

A trial that crashes, hangs or eats the memory takes nothing with it, and its peak memory is its
own. The server is an interpreter apart and not a fork of the caller: a script that calls embench
needs no ``if __name__ == "__main__"``, and no thread pool of the caller is inherited.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from threading import Lock
from typing import Any, Literal, Self

from embench.measuring.environment import describe
from embench.measuring.judging import is_about_memory
from embench.measuring.machine import available_memory
from embench.measuring.threads import THREAD_VARIABLES
from embench.types import Record, Trial

Isolation = Literal["trial", "model", "none"]

CAN_ISOLATE = hasattr(os, "fork") and hasattr(os, "pidfd_open")

ATTEMPTS = 3
"""How often a trial is begun where the processes around it are killed."""


class LaneLost(ConnectionError):
    """The process that a trial was given to is gone, through no fault of the trial."""


class TrialServer:
    """Runs trials, as many at a time as there are threads that call it; use it in a ``with``.

    Its processes start when they are needed. They live in a session of their own, so that Ctrl-C
    reaches the caller alone, and end themselves and the trials under way as soon as the caller is
    gone, however it went.

    Args:
        threads: Of all numerical libraries, set before they are imported.
        trials: What will be run: what that needs is imported before anything is forked.
        isolation: A process for each "trial", or one for each "model".
        memory_limit: Bytes that a trial may ask for; None for what is available now, divided.
        workers: How many trials are going to be run at a time.
        folder: Where trials look for files and for modules of the user's.
    """

    def __init__(
        self,
        threads: int,
        trials: Iterable[Trial] = (),
        *,
        isolation: Isolation = "trial",
        memory_limit: int | None = None,
        workers: int = 1,
        folder: str | None = None,
    ) -> None:
        names = [
            *(("model", trial.model.name) for trial in trials),
            *(("dataset", trial.dataset.name) for trial in trials),
        ]
        self._start = partial(_Root, list(dict.fromkeys(names)), threads, folder)
        self._lane = {
            "threads": threads,
            "isolation": isolation,
            "memory_limit": memory_limit or available_memory() // workers,
        }
        self._root: _Root | None = None
        self._free: list[_Lane] = []
        self._lock = Lock()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, trial: Trial) -> Record:
        """Run a trial to its record; a process that died gives a record, too.

        Raises:
            LaneLost: The server was closed.
        """
        for _ in range(ATTEMPTS):
            lane = self._take()
            try:
                record = lane.run(trial)
            except LaneLost:
                continue
            with self._lock:
                self._free.append(lane)
            return record
        return Record(
            trial=trial,
            status="crashed",
            message=f"the processes that run trials were killed, {ATTEMPTS} times",
            environment=describe(),
        )

    def close(self) -> None:
        """End all processes, those of trials under way, too."""
        with self._lock:
            self._is_closed = True
            if self._root:
                self._root.close()

    def _take(self) -> _Lane:
        """A free lane, or a new one, of a new root if the old one is gone."""
        with self._lock:
            if self._is_closed:
                raise LaneLost("the server is closed")
            if self._free:
                return self._free.pop()
            if self._root is None or not self._root.is_alive():
                self._root = self._start()
            return self._root.lane(self._lane)


class _Root:
    """The process that has the imports done, and the lanes forked from it."""

    def __init__(self, names: list[tuple[str, str]], threads: int, folder: str | None) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lanes: list[_Lane] = []
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "embench.measuring.server"],
                stdin=theirs.fileno(),
                env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
                cwd=folder,
                start_new_session=True,
            )
        path = [*sys.path, *filter(None, [folder])]
        self._control.send(json.dumps({"path": path, "names": names}).encode())

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def lane(self, asked: Mapping[str, Any]) -> _Lane:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [json.dumps(asked).encode()], [theirs.fileno()])
            except OSError as error:
                raise LaneLost("the process that starts the others is gone") from error
        self._lanes.append(_Lane(ours))
        return self._lanes[-1]

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._control.close()
        self._process.wait()


class _Lane:
    """Our end of the talk with a process that runs trials, one after the other."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk = talk
        self._lines = talk.makefile("rb")

    def run(self, trial: Trial) -> Record:
        """Run a trial to its record, or to one that says how its process died.

        Raises:
            LaneLost: The lane is gone.
        """
        try:
            self._talk.sendall(json.dumps(asdict(trial)).encode() + b"\n")
            reply, record = self._lines.readline(), self._lines.readline()
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            raise LaneLost(str(error)) from error
        if not record.endswith(b"\n"):
            raise LaneLost("closed")
        return _record(trial, json.loads(reply), json.loads(record) if record.strip() else None)

    def close(self) -> None:
        """Wake up whoever waits for it; the process at the other end goes, with all of its own."""
        with suppress(OSError):
            self._talk.shutdown(socket.SHUT_RDWR)
        self._talk.close()


def _record(trial: Trial, reply: Mapping[str, Any], written: Any) -> Record:
    """The trial's own record, or one that says how its process died."""
    if reply["is_well"]:
        return replace(Record.from_json(written), grade=reply["grade"])
    status, message = _death(trial, reply)
    if written is not None:  # judged, and lost while the curve was drawn
        record = Record.from_json(written)
        words = "; ".join(filter(None, (record.message, f"no curve: {message}")))
        return replace(record, message=words, grade=reply["grade"])
    return Record(
        trial=trial,
        status=status,
        message=message,
        trial_seconds=reply["seconds"],
        grade=reply["grade"],
        environment=describe(),
    )


def _death(trial: Trial, reply: Mapping[str, Any]) -> tuple[str, str]:
    """Status and sentence for a process that left no whole record."""
    code = reply["exit_code"]
    last_words = reply["stderr"].strip().rpartition("\n")[2]
    if reply["is_overdue"] or code == -signal.SIGALRM:
        limit = (
            f"no end after {reply['seconds']:.3g} s, where a fit may take {trial.time_limit:g} s"
        )
        return "timeout", f"cut off: {limit} (raise the time limit?)"
    if code == -signal.SIGKILL:
        return "out-of-memory", "the system killed the process, most often for want of memory"
    if is_about_memory(reply["stderr"]):
        return "out-of-memory", f"the process died for want of memory; its last words: {last_words}"
    if code < 0:
        message = f"the process died of signal {-code} ({signal.Signals(-code).name})"
    else:
        message = f"the process ended itself with exit code {code}"
    return "crashed", f"{message}; its last words: {last_words}" if last_words else message
