"""The processes behind `TrialServer`: a root, a lane for each worker, a child for each trial.

``python -m embench.measuring.server`` is the root. It imports what the trials need, once, and forks
a lane for every socket that it is sent. A lane claims cores, pins itself to them, and has the
trials that its socket brings run by children (see `embench.measuring.child`). Nobody computes
before the child: a thread pool or a CUDA context made before a fork is broken after it.

Nothing outlives the caller. A lane whose socket closes kills its child, and a child whose lane is
gone is killed by the kernel. What a model leaves running comes back to the lane, or to the root if
the lane is gone, and is killed.
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
from contextlib import ExitStack, nullcontext, suppress
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
from embench.measuring.machine import claimed_cores, claimed_gpu
from embench.measuring.threads import pools
from embench.types import Spec, Trial

IMPORT_SECONDS = 60.0
"""An import that takes longer ends its process: the next one leaves it to the child."""

LOOK_SECONDS = 0.5
"""How often a lane looks how its child is doing: for microseconds, on the core that both share."""

LAST_WORDS = 2000
"""Bytes told of what a child wrote to stderr."""

MOST_WORDS = 2**24
"""Bytes on the disk of that; a child that writes more is not kept from it, but from filling it."""

IDLE_SHARE = 0.25
"""Of the memory limit: what the processes that wait for their model's next trial may hold."""

STOPPED_SECONDS = 2.0
"""How often the root looks for lanes that a model has stopped: nobody would wake them."""

READY = b"ready"
LARGEST_MESSAGE = 2**17

VMSTAT = Path("/proc/vmstat")

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
    _adopt_orphans()
    _look_around()
    for kind, name in asked["names"]:
        _imported(kind, name)
    with suppress(ConnectionError):  # the caller is gone
        control.send(READY)
        _fork_lanes(control)


def _fork_lanes(control: socket.socket) -> None:
    """Fork a lane for every socket that comes, and end what lanes leave behind when they end."""
    lanes: dict[int, int] = {}
    while True:
        ready = _ready(STOPPED_SECONDS, control, *lanes)
        for pid in lanes.values() if not ready else ():
            _kill_if_stopped(pid)
        for lane in lanes.keys() & ready:
            os.close(lane)
            del lanes[lane]
            _kill_orphans(set(lanes.values()))  # the lane itself is one
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, LARGEST_MESSAGE, 1)
        if not message:
            return
        if (pid := os.fork()) == 0:
            control.close()
            _be_the_lane(socket.socket(fileno=descriptors[0]), json.loads(message))
        os.close(descriptors[0])
        lanes[os.pidfd_open(pid)] = pid


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
    signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS)
    with suppress(BaseException):  # what is wrong with it is the child's to say
        found = registry.load(kind, name)
        registry.version(kind, Spec(name))
        for module in getattr(found, "late_imports", ()):
            importlib.import_module(module)
    signal.setitimer(signal.ITIMER_REAL, 0)
    pools()  # looked for once, and not by every child
    gc.collect()
    gc.freeze()  # what the children inherit is never looked through again


def _be_the_lane(caller: socket.socket, asked: dict[str, Any]) -> NoReturn:
    """Serve the trials of one socket until it closes."""
    _adopt_orphans()
    lane = _Lane(caller, **asked["lane"])
    try:
        with ExitStack() as stack:
            cores = (
                stack.enter_context(claimed_cores(asked["threads"])) if asked["claims"] else None
            )
            if cores:
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
    """A process that runs trials.

    ``death`` can be read when it is dead. ``talk`` is our end of the talk with it, ``deadline``
    what it must have done and when, ``stderr`` the file for what it writes there.
    """

    pid: int
    death: int
    talk: socket.socket
    deadline: child.Deadline
    stderr: IO[bytes]

    def private_memory(self) -> int:
        """Bytes that only this process has; 0 where the kernel does not tell."""
        with suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{self.pid}/smaps_rollup").read_text().split()
            return int(words[words.index("Private_Dirty:") + 1]) * 1024
        return 0


@dataclass
class _Lane:
    """Runs the trials of one caller, one after the other.

    ``kept`` are the processes that wait for the next trial of their model, where ``isolation`` is
    "model".
    """

    caller: socket.socket
    isolation: str
    memory_limit: int
    patience: float
    kept: dict[str, _Child] = field(default_factory=dict)

    def serve(self, grade: str) -> None:
        """For each trial three lines: that it begins, how it went, and its record if there is one.

        The first comes after the imports: who does not hear it knows what this process died of.
        """
        for line in self.caller.makefile("r", encoding="utf-8"):
            asked = json.loads(line)
            trial = Trial.from_json(asked["trial"])
            if asked["imports"]:
                _imported("dataset", trial.dataset.name)
                _imported("model", trial.model.name)
            self.caller.sendall(b"\n")
            model = json.dumps(asdict(trial.model))
            one = self._kept(model) or self._forked()
            with claimed_gpu() if trial.device == "cuda" else nullcontext():
                reply, record = self._run(one, json.dumps(asked["trial"]).encode() + b"\n")
            reply["grade"] = grade
            self.caller.sendall(json.dumps(reply).encode() + b"\n" + record + b"\n")
            # While the caller writes the record down.
            if reply["is_well"] and self.isolation == "model":
                self._keep(model, one)
            elif reply["is_well"]:
                self._buried(one)

    def end(self) -> None:
        """Leave nothing behind."""
        for one in self.kept.values():
            _kill_group(one.pid)
        _kill_orphans(set())

    def _run(self, one: _Child, trial: bytes) -> tuple[dict[str, Any], bytes]:
        """How the child and its trial went, and the last record that it told."""
        began, oom_kills = time.monotonic(), _oom_kills()
        one.deadline.set("beginning", self.patience)
        with suppress(BrokenPipeError, ConnectionResetError):  # dead before it began
            one.talk.sendall(trial)
        said, is_well = self._heard(one)
        reply: dict[str, Any] = {"is_well": is_well, "seconds": time.monotonic() - began}
        if not is_well:
            reply |= {"doing": one.deadline.doing(), **self._buried(one)}
            # The kernel counts before it kills.
            reply["is_oom_kill"] = oom_kills is None or oom_kills != _oom_kills()
            reply["environment"] = describe()
        return reply, said.rstrip(b"\n").rpartition(b"\n")[2]

    def _kept(self, model: str) -> _Child | None:
        """The process that waits for a trial of this model, unless somebody has killed it."""
        one = self.kept.pop(model, None)
        if one and _ready(0, one.death):
            self._buried(one)
            return None
        return one

    def _keep(self, model: str, one: _Child) -> None:
        """Let a process wait, and bury those that wait longest where all hold too much memory."""
        _kill_orphans({one.pid, *(other.pid for other in self.kept.values())})
        self.kept[model] = one
        sizes = {name: each.private_memory() for name, each in self.kept.items()}
        while sum(sizes.values()) > IDLE_SHARE * self.memory_limit:
            oldest = next(iter(sizes))
            del sizes[oldest]
            self._buried(self.kept.pop(oldest))

    def _forked(self) -> _Child:
        """A child that waits for its first trial."""
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115, closed when the child is buried
        deadline = child.Deadline()
        lane = os.getpid()
        if (pid := os.fork()) == 0:
            for other in (ours, self.caller):
                other.close()
            child.be(theirs, stderr.fileno(), lane, self.memory_limit, deadline, self.patience)
        theirs.close()
        return _Child(pid, os.pidfd_open(pid), ours, deadline, stderr)

    def _heard(self, one: _Child) -> tuple[bytes, bool]:
        """Whole lines of the child until it has said all, is dead or overdue; whether it is well.

        Raises:
            ConnectionAbortedError: The caller is gone; so is the child.
        """
        said = b""
        sources: list[socket.socket | int] = [one.talk, one.death, self.caller]
        while not said.endswith(child.ALL):
            left = one.deadline.left()
            ready = _ready(max(0.0, min(left, LOOK_SECONDS)), *sources)
            if self.caller in ready:
                _kill_group(one.pid)
                raise ConnectionAbortedError
            if one.talk in ready:
                said += (more := _received(one.talk))
                if not more:  # it has closed its end, and may live on
                    sources.remove(one.talk)
            elif one.death in ready or one.deadline.left() <= 0:
                return said[: said.rfind(b"\n") + 1], False
            if os.fstat(one.stderr.fileno()).st_size > MOST_WORDS:
                one.stderr.truncate(0)
        return said, True

    def _buried(self, one: _Child) -> dict[str, Any]:
        """How the child ended, which it does now at the latest, with all that it left running."""
        is_overdue = not _ready(0, one.death)
        _kill_group(one.pid)
        _, status = os.waitpid(one.pid, 0)
        _kill_orphans({other.pid for other in self.kept.values()})
        size = os.fstat(one.stderr.fileno()).st_size
        last = os.pread(one.stderr.fileno(), LAST_WORDS, max(0, size - LAST_WORDS))
        os.close(one.death)
        one.talk.close()
        one.stderr.close()
        return {
            "exit_code": os.waitstatus_to_exitcode(status),
            "is_overdue": is_overdue,
            "stderr": last.decode(errors="replace"),
        }


def _ready(seconds: float, *files: socket.socket | int) -> list[Any]:
    """Which of the files can be read, or have ended; none if there is none in so many seconds."""
    return select.select(files, [], [], seconds)[0]


def _received(talk: socket.socket) -> bytes:
    """What has come; nothing if the other end is closed."""
    with suppress(ConnectionResetError):
        return talk.recv(2**16)
    return b""


def _oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory; None where it does not tell."""
    with suppress(OSError, ValueError, IndexError):
        words = VMSTAT.read_text().split()
        return int(words[words.index("oom_kill") + 1])
    return None


def _adopt_orphans() -> None:
    """Have every process below this one come back to it when its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_orphans(kept: set[int]) -> None:
    """Kill what has come back to this process because the process that made it is gone.

    With its whole group: one that forks and dies all the time is never met by its own number.
    """
    try:  # asked first: a look at all processes takes milliseconds, and mostly there is nobody
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    while orphans := {pid: group for pid, group in _children().items() if pid not in kept}:
        for pid, group in orphans.items():
            if group not in kept and group != os.getpgrp():
                _kill_group(group)
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _kill_if_stopped(pid: int) -> None:
    with suppress(OSError):
        if _status(pid)[0] == "T":
            os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _children() -> dict[int, int]:
    """Processes whose parent this one is, each with its group, by a look at all processes: not
    every kernel keeps lists of children."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            pid = int(path.parent.name)
            _, parent, group = _status(pid)
            if int(parent) == os.getpid():
                found[pid] = int(group)
    return found


def _status(pid: int) -> list[str]:
    """State, parent and group of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]


if __name__ == "__main__":
    main()
