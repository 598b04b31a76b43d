"""Whoever is killed, at whatever moment: nothing written changes, all is measured in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress

import psutil
import pytest

from embench import store

MARK = "EMBENCH_TEST"
COMMAND = [sys.executable, "-m", "embench.cli", "run", "--dataset", "iris,wine", "--seeds", "5"]
COMMAND += ["--model", "em,sklearn-em,spec-em,sklearn-em:covariance_type=diag"]
COMMAND += ["--track", "default", "--workers", "2", "--no-remeasure", "--out"]
TRIALS = 40

BLOWS = {
    "driver": [signal.SIGKILL, signal.SIGTERM, signal.SIGINT],
    "root": [signal.SIGKILL, signal.SIGTERM],
    "lane": [signal.SIGKILL, signal.SIGTERM],
    "child": [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP],
}
SECONDS_TO_GO = 10.0
LONGEST_RUN = 120.0


class Besieged:
    """The same command again and again, until all its trials are done, and what is left of it."""

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.path = folder / store.RECORDS
        self.mark = str(uuid.uuid4())
        self.blows = Counter()
        self.starts = 0
        self.driver = None
        self.written = b""

    def start(self):
        """Go on, where all of the run before is gone."""
        self.starts += 1
        self.driver = psutil.Popen(
            [*COMMAND, str(self.folder)],
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def strike(self):
        """Kill one of those that are there, the role first, so that there are blows for each."""
        there = self._roles()
        if not there:
            return
        role = self.rng.choice(sorted(there))
        victim, blow = self.rng.choice(there[role]), self.rng.choice(BLOWS[role])
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(blow)
            if blow == signal.SIGSTOP:
                time.sleep(self.rng.uniform(0.0, 0.1))
                victim.kill()
            self.blows[f"{role} {blow.name}"] += 1

    def check(self):
        """What was ever written is still what it was, where it was."""
        found = self.path.read_bytes() if self.path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        assert whole.startswith(self.written)
        self.written = whole

    def processes(self):
        return [one for one in psutil.process_iter() if self._is_ours(one)]

    def _roles(self):
        ours = self.processes()
        depths = {one.pid: len([p for p in self._parents(one) if p in ours]) for one in ours}
        names = dict(enumerate(BLOWS))
        roles = {}
        for one in ours:
            if name := names.get(depths[one.pid]):
                roles.setdefault(name, []).append(one)
        return roles

    def _parents(self, process):
        with suppress(psutil.NoSuchProcess):
            return process.parents()
        return []

    def _is_ours(self, process):
        with suppress(psutil.Error):
            ended = process.status() == psutil.STATUS_ZOMBIE
            return not ended and process.environ().get(MARK) == self.mark
        return False


def besieged(folder, n_blows, seed):
    """Kill at random until there have been so many blows, then let it come to its end."""
    run = Besieged(folder, random.Random(seed))
    run.start()
    while sum(run.blows.values()) < n_blows:
        time.sleep(run.rng.uniform(0.0, 1.0))
        run.strike()
        run.check()
        if run.driver.poll() is not None:
            if run.is_done():
                break
            run.start()
    return run


def test_todo():
    pass
