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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from threading import Lock
from typing import Any, Literal, Self

from embench.measuring.environment import describe
from embench.measuring.judging import in_one_line, is_about_memory
from embench.measuring.machine import available_memory, cores
from embench.measuring.threads import THREAD_VARIABLES
from embench.measuring.trial import PATIENCE, WARM_UP_SECONDS, utc_now
from embench.types import Record, Trial

Isolation = Literal["trial", "model", "none"]

CAN_ISOLATE = hasattr(os, "fork") and hasattr(os, "pidfd_open")

MOST_NAMES = 500
"""Of models and datasets that are imported ahead."""

ATTEMPTS = 5
"""How often a trial is begun where the processes around it are killed. An import that kills takes
three: the root's, a lane's, and the child's, which can be told."""


FAREWELL_SECONDS = 5.0
"""How long processes that were told to end may take for it before they are killed."""


class LaneLost(ConnectionError):
    """The process that a trial was given to is gone, through no fault of the trial."""


class ImportLost(LaneLost):
    """It is gone before the trial began, perhaps through what it imported for it."""

    def __init__(self, model: str) -> None:
        super().__init__(f"lost at the import of {model}")
        self.model = model


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
        patience: Seconds that a trial may take, at least, for anything that is no fit.
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
        patience: float = PATIENCE,
    ) -> None:
        names = [
            *(("model", trial.model.name) for trial in trials),
            *(("dataset", trial.dataset.name) for trial in trials),
        ]
        self._names = list(dict.fromkeys(names))[:MOST_NAMES]
        self._start = partial(_Root, threads=threads, folder=folder)
        self._memory_limit = memory_limit or available_memory() // workers
        self._asked = {
            "threads": threads,
            "claims": workers * threads <= len(cores()),  # else one would share what another has
            "lane": {
                "isolation": isolation,
                "memory_limit": self._memory_limit,
                "patience": patience,
            },
        }
        self._root: _Root | None = None
        self._lanes: list[_Lane] = []
        self._free: list[_Lane] = []
        self._suspects: set[str] = set()
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
            with suppress(LaneLost), self._lane() as lane:
                reply, record = lane.run(trial, imports=trial.model.name not in self._suspects)
                return _record(trial, reply, record, self._memory_limit)
            if self._is_closed:
                raise LaneLost("the server is closed")
        return Record(
            trial=trial,
            status="crashed",
            message=f"the processes that run trials were killed {ATTEMPTS} times, perhaps by it",
            ended=utc_now(),
            environment=describe(),
        )

    def close(self) -> None:
        """End all processes, those of trials under way, too."""
        with self._lock:
            self._is_closed = True
            for lane in self._lanes:
                lane.close()
            if self._root:
                self._root.close()

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """A lane for one trial: it is free again afterwards, or closed if it is lost."""
        with self._lock:
            if self._is_closed:
                raise LaneLost("the server is closed")
            lane = self._free_lane() or self._new_lane()
        try:
            yield lane
        except LaneLost as error:
            with self._lock:
                self._lanes.remove(lane)
                if isinstance(error, ImportLost) and self._root and self._root.has_imported():
                    self._suspects.add(error.model)
            lane.close()
            raise
        with self._lock:
            self._free.append(lane)

    def _free_lane(self) -> _Lane | None:
        """One that has nothing to do; those that were killed meanwhile are closed."""
        while self._free:
            if (lane := self._free.pop()).is_alive():
                return lane
            self._lanes.remove(lane)
            lane.close()
        return None

    def _new_lane(self) -> _Lane:
        """A lane of the root, or of a new one if that is gone."""
        if self._is_closed:
            raise LaneLost("the server is closed")
        if self._root and not self._root.is_alive():
            if not self._root.has_imported():
                self._names = []  # one of them has killed it: lanes import what their trials need
            self._root.close()
            self._root = None
        self._root = self._root or self._start(self._names)
        self._lanes.append(self._root.lane(self._asked))
        return self._lanes[-1]


class _Root:
    """The process that has the imports done, and the lanes forked from it."""

    def __init__(self, names: list[tuple[str, str]], *, threads: int, folder: str | None) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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

    def has_imported(self) -> bool:
        """Whether it has come, or came, to the end of its imports."""
        with suppress(OSError):
            return bool(self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    def lane(self, asked: Mapping[str, Any]) -> _Lane:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [json.dumps(asked).encode()], [theirs.fileno()])
            except OSError as error:
                ours.close()
                self._process.kill()  # it is on its way out
                self._process.wait()
                raise LaneLost("the process that starts the others is gone") from error
        return _Lane(ours)

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:  # it is in the middle of an import
            self._process.kill()
            self._process.wait()


class _Lane:
    """Our end of the talk with a process that runs trials, one after the other."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk = talk
        self._lines = talk.makefile("rb")

    def is_alive(self) -> bool:
        """Whether a lane that has nothing to say is still there."""
        try:
            self._talk.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def run(self, trial: Trial, *, imports: bool) -> tuple[Any, Any]:
        """How a trial went, and its record if it left one.

        Args:
            trial: What to run.
            imports: The lane is to import what it needs, for all trials to come.

        Raises:
            ImportLost: The lane is gone, before the trial began.
            LaneLost: The lane is gone.
        """
        asked = json.dumps({"trial": asdict(trial), "imports": imports})
        try:
            self._talk.sendall(asked.encode() + b"\n")
            lines = [self._lines.readline() for _ in range(3)]
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            raise LaneLost(str(error)) from error
        if not lines[0]:
            raise ImportLost(trial.model.name)
        if not lines[-1].endswith(b"\n"):
            raise LaneLost("closed")
        reply, record = map(str.strip, map(bytes.decode, lines[1:]))
        return json.loads(reply), json.loads(record) if record else None

    def close(self) -> None:
        """Wake up whoever waits for it; the process at the other end goes, with all of its own."""
        with suppress(OSError):
            self._talk.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._talk.close()


def _record(trial: Trial, reply: Mapping[str, Any], written: Any, memory_limit: int) -> Record:
    """The trial's own record, or one that says how its process died."""
    record = None if written is None else Record.from_json(written)
    if not reply["is_well"]:
        status, words = _death(trial, reply)
        if record:  # judged, and lost while the curve was drawn
            words = "; ".join(filter(None, (record.message, f"no curve: {words}")))
            record = replace(record, message=words)
        else:
            record = Record(
                trial=trial,
                status=status,
                message=words,
                trial_seconds=reply["seconds"],
                ended=utc_now(),
                environment=reply["environment"],
            )
    assert record is not None
    if record.status == "out-of-memory":
        most = f"a trial may ask for {memory_limit / 2**30:.3g} GiB (raise the memory limit?)"
        record = replace(record, message=f"{record.message}; {most}")
    return replace(record, grade=reply["grade"])


def _death(trial: Trial, reply: Mapping[str, Any]) -> tuple[str, str]:
    """Status and sentence for a process that left no whole record."""
    code = reply["exit_code"]
    if reply["is_overdue"]:
        return "timeout", (
            f"cut off while {reply['doing']}, after {reply['seconds']:.3g} s in all, where a fit "
            f"may take {trial.time_limit:g} s, a warm-up {WARM_UP_SECONDS:g} s more (raise the "
            "time limit?)"
        )
    last_words = in_one_line(reply["stderr"].strip().rpartition("\n")[2])
    told = f"; its last words: {last_words}" if last_words else ""
    if code == -signal.SIGKILL and reply["is_oom_kill"]:
        return "out-of-memory", "the system killed the process for want of memory"
    if is_about_memory(reply["stderr"]):
        return "out-of-memory", f"the process died for want of memory{told}"
    if code < 0:
        named = [f" ({one.name})" for one in signal.Signals if one == -code]
        how = f"the process died of signal {-code}{''.join(named)}"
    else:
        how = f"the process ended itself with exit code {code}"
    return "crashed", f"{how} while {reply['doing']}{told}"
