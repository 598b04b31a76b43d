"""The processes behind `TrialServer`: a root, a lane for each worker, a child for each trial.

``python -m embench.measuring.server`` is the root. It imports what the trials need, once, and forks
a lane for every socket that it is sent. A lane claims cores, pins itself to them, and has the
trials that its socket brings run by children (see `embench.measuring.child`). Nobody computes
before the child: a thread pool or a CUDA context made before a fork is broken after it.

Nothing outlives the caller. A lane whose socket closes kills its child, and a child whose lane is
gone is killed by the kernel. What a model leaves running comes back to the lane, and is killed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

import joblib
import numpy as np
from sklearn.utils.validation import check_array

from embench import registry
from embench.measuring import child
from embench.measuring.environment import describe
from embench.measuring.machine import claimed_cores
from embench.types import Spec, Trial

OVERDUE_LIMITS = 10
OVERDUE_SECONDS = 120
"""A child that takes longer than OVERDUE_LIMITS time limits and OVERDUE_SECONDS is killed. Whatever
it does is cut off much earlier by its own alarm; this is for one that silences the alarm."""

LAST_WORDS = 2000
"""Bytes kept of what a child wrote to stderr."""

LARGEST_MESSAGE = 2**17
FAREWELL_SECONDS = 10

PR_SET_CHILD_SUBREAPER = 36
"""Of prctl(2): orphans below come back to this process."""


def main() -> None:
    """Be the root: import what is needed, then fork a lane for every socket that comes."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    asked = json.loads(control.recv(LARGEST_MESSAGE))
    # The caller finds its own models there; never before the libraries.
    sys.path += [path for path in asked["path"] if path not in sys.path]
    _look_around()
    for kind, name in asked["names"]:
        _imported(kind, name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # lanes are nobody's to wait for
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, LARGEST_MESSAGE, 1)
        if not message:
            break
        if os.fork() == 0:
            control.close()
            _be_the_lane(socket.socket(fileno=descriptors[0]), json.loads(message))
        os.close(descriptors[0])


def _look_around() -> None:
    """What every child would else do once, and some of it in the clocked fit."""
    describe()
    for module in ("pydantic", "sklearn.metrics"):
        importlib.import_module(module)
    # At their first calls scikit-learn looks through all installed packages, for 15 ms, and asks
    # another process how many cores there are, for 40.
    check_array(np.zeros((1, 1)))
    joblib.cpu_count(only_physical_cores=True)


@cache
def _imported(kind: str, name: str) -> None:
    """Import what stands behind a name, and read its source for its version."""
    with suppress(Exception):  # what is wrong with it is the child's to say
        found = registry.load(kind, name)
        registry.version(kind, Spec(name))
        for module in getattr(found, "late_imports", ()):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what the children inherit is never looked through again


def _be_the_lane(caller: socket.socket, asked: dict[str, Any]) -> NoReturn:
    """Serve the trials of one socket until it closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lane = _Lane(caller, asked["isolation"], asked["memory_limit"])
    try:
        with ExitStack() as stack:
            if cores := stack.enter_context(claimed_cores(asked["threads"])):
                os.sched_setaffinity(0, cores)
            lane.serve("timing" if cores else "quality")
    except (BrokenPipeError, ConnectionError):
        pass  # the caller is gone
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        lane.end()
        os._exit(0)


@dataclass(frozen=True)
class _Child:
    """A process that runs trials: our end of the talk with it, and what it writes to stderr."""

    pid: int
    talk: socket.socket
    stderr: IO[bytes]


@dataclass
class _Lane:
    """Runs the trials of one caller, one after the other.

    ``kept`` are the processes that wait for the next trial of their model, where ``isolation`` is
    "model".
    """

    caller: socket.socket
    isolation: str
    memory_limit: int
    kept: dict[str, _Child] = field(default_factory=dict)

    def serve(self, grade: str) -> None:
        """For each trial two lines: how it went, and the record if there is one."""
        for line in self.caller.makefile("r", encoding="utf-8"):
            trial = Trial.from_json(json.loads(line))
            _imported("dataset", trial.dataset.name)
            _imported("model", trial.model.name)
            model = json.dumps(asdict(trial.model))
            one = self.kept.pop(model, None) or self._forked()
            began = time.monotonic()
            one.talk.sendall(line.encode())
            said, is_well = self._heard(one, OVERDUE_SECONDS + OVERDUE_LIMITS * trial.time_limit)
            reply = {"grade": grade, "is_well": is_well, "seconds": time.monotonic() - began}
            if not is_well:
                reply |= self._buried(one)
            record = said.rstrip(b"\n").rpartition(b"\n")[2]
            self.caller.sendall(json.dumps(reply).encode() + b"\n" + record + b"\n")
            # While the caller writes the record down.
            if is_well and self.isolation == "model":
                self.kept[model] = one
            elif is_well:
                self._buried(one)

    def end(self) -> None:
        """Leave nothing behind."""
        for one in self.kept.values():
            _kill_group(one.pid)
        self.kept = {}
        self._kill_orphans()

    def _forked(self) -> _Child:
        """A child that waits for its first trial."""
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed when the child is buried
        lane = os.getpid()
        if (pid := os.fork()) == 0:
            for other in (ours, self.caller):
                other.close()
            child.be(theirs, stderr.fileno(), lane, self.memory_limit)
        theirs.close()
        return _Child(pid, ours, stderr)

    def _heard(self, one: _Child, seconds: float) -> tuple[bytes, bool]:
        """Whole lines of the child until it has said all, is dead or overdue; whether it is well.

        Raises:
            ConnectionAbortedError: The caller is gone; so is the child.
        """
        end = time.monotonic() + seconds
        said = b""
        death = os.pidfd_open(one.pid)
        try:
            while not said.endswith(child.ALL):
                left = max(0.0, end - time.monotonic())
                ready = _ready(left, one.talk, death, self.caller)
                if self.caller in ready:
                    _kill_group(one.pid)
                    raise ConnectionAbortedError
                if one.talk in ready and (more := one.talk.recv(2**16)):
                    said += more
                elif death in ready or not ready:
                    return said[: said.rfind(b"\n") + 1], False
        finally:
            os.close(death)
        return said, True

    def _buried(self, one: _Child) -> dict[str, Any]:
        """How the child ended, which it does now at the latest, with all that it left running."""
        ended = os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        _kill_group(one.pid)
        _, status = os.waitpid(one.pid, 0)
        self._kill_orphans()
        size = os.fstat(one.stderr.fileno()).st_size
        last = os.pread(one.stderr.fileno(), LAST_WORDS, max(0, size - LAST_WORDS))
        one.talk.close()
        one.stderr.close()
        return {
            "exit_code": os.waitstatus_to_exitcode(status),
            "is_overdue": ended is None,
            "stderr": last.decode(errors="replace"),
        }

    def _kill_orphans(self) -> None:
        """Kill what has come back to this lane because the process that made it is gone."""
        kept = {one.pid for one in self.kept.values()}
        while True:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                orphans = _children_of(os.getpid()) - kept
                for pid in orphans:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if orphans:
                    time.sleep(0.001)
                    continue
            return


def _ready(seconds: float, *files: socket.socket | int) -> list[Any]:
    """Which of the files can be read, or have ended; none if there is none in so many seconds."""
    return select.select(files, [], [], seconds)[0]


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _children_of(parent: int) -> set[int]:
    """Process ids, by a look at all processes: not every kernel keeps lists of children."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(path.parent.name))
    return found


if __name__ == "__main__":
    main()
