"""The process that a trial is run in: forked by a lane of `embench.measuring.server`."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from embench.measuring.trial import stages
from embench.types import Record, Trial

ALL = b"\n\n"
"""What ends the records of a trial: an empty line."""

DEADLINE = struct.Struct("db64s")
"""Of the monotonic clock [s], and length and bytes of what is done until then."""

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that the kernel sends when the parent is gone."""


class Deadline:
    """What a child does and until when it may, in memory that it shares with its lane.

    The lane looks at it now and then: that disturbs nothing that is clocked, as a message would,
    and a child that stands still, or heeds no signal, is killed all the same.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def set(self, doing: str, seconds: float) -> None:
        """So many seconds from now on for what is done next."""
        words = doing.encode()
        DEADLINE.pack_into(self._page, 0, time.monotonic() + seconds, len(words), words)

    def left(self) -> float:
        """Seconds."""
        end: float = DEADLINE.unpack_from(self._page)[0]
        return end - time.monotonic()

    def doing(self) -> str:
        _, length, words = DEADLINE.unpack_from(self._page)
        return str(words[:length].decode())


def be(
    talk: socket.socket,
    stderr: int,
    lane: int,
    memory_limit: int,
    deadline: Deadline,
    patience: float,
) -> NoReturn:
    """Run the trials that come, tell their records, and end with the lane.

    Args:
        talk: Brings a trial a line, and takes its records, a line each, and `ALL`.
        stderr: Descriptor of the file for what is written to stderr.
        lane: The process that forked this one.
        memory_limit: Bytes that a trial may ask for beyond what is in use now.
        deadline: To be kept up to date.
        patience: Seconds that may be taken by what is no fit.
    """
    me = os.getpid()
    try:
        _die_with(lane)
        os.setsid()
        os.dup2(stderr, 2)
        _limit(memory_limit)
        for line in talk.makefile("r", encoding="utf-8"):
            trial = Trial.from_json(json.loads(line))
            for record in stages(trial, partial(_enter, trial, deadline, me), patience):
                _tell(talk, _as_line(record), me)
            ctypes.CDLL(None).malloc_trim(0)  # it may be kept, and wait for long
            _tell(talk, b"\n", me)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _as_line(record: Record) -> bytes:
    return json.dumps(record.to_json(), allow_nan=False).encode() + b"\n"


def _tell(talk: socket.socket, line: bytes, me: int) -> None:
    _end_twin(me)
    try:
        talk.sendall(line)
    except OSError as error:
        raise RuntimeError(
            "there is no way to tell the record: did the model close files?"
        ) from error


def _end_twin(me: int) -> None:
    """A fork that the model let go on beside us has nothing to tell."""
    if os.getpid() != me:
        os._exit(0)


def _die_with(lane: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != lane:  # it was gone before
        os._exit(1)


def _limit(memory: int) -> None:
    """Refuse memory beyond the limit, leave no core dump, and be the first to go if all is used up.

    The limit is on what is asked for, not on what is used: a library is told at once and can say
    so, and the machine does not get to swapping.
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _enter(trial: Trial, deadline: Deadline, me: int, doing: str, seconds: float) -> None:
    """Begin what is done next: all fits of a trial begin at the same global random states.

    Models are told their ``random_state``; this is for those that draw from what is global.
    """
    _end_twin(me)
    deadline.set(doing, seconds)
    seed = trial.seed % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
