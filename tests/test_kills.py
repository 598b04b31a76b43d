"""Whoever is killed, at whatever moment: nothing written changes, all is measured in the end."""

from __future__ import annotations

import itertools
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
"""Environment variable by which the processes of a run are known, whoever their parent is."""

COMMAND = [sys.executable, "-m", "embench.cli", "run", "--dataset", "iris,wine"]
COMMAND += ["--model", "em,sklearn-em,em:max_iter=9,sklearn-em:max_iter=9", "--track", "default"]
COMMAND += ["--workers", "2", "--no-remeasure"]
TRIALS_A_SEED = 8

BLOWS = {
    "driver": [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP],
    "root": [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP],
    "lane": [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP],
    "child": [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP],
}
"""What each is killed by; one that is stopped is killed a moment later."""

SECONDS_TO_GO = 10.0
LONGEST_SIEGE = 300.0


class Siege:
    """The same command again and again, while processes of it are killed, until all is measured."""

    def __init__(self, folder, n_seeds, seed):
        self.folder, self.n_seeds = folder, n_seeds
        self.rng = random.Random(seed)
        self.path = folder / store.RECORDS
        self.mark = str(uuid.uuid4())
        self.blows = Counter()
        self.starts = 0
        self.written = b""

    def lay(self, n_blows):
        """Strike so many times, look on until all is done, and see that nobody is left."""
        end = time.monotonic() + LONGEST_SIEGE
        while not self.is_won() and time.monotonic() < end:
            self._run(n_blows)
            assert _wait_until(lambda: not self._processes()), self._processes()

    def is_won(self):
        records = store.latest(store.read(self.folder)) if self.path.exists() else []
        return [r.status for r in records] == TRIALS_A_SEED * self.n_seeds * ["ok"]

    def _run(self, n_blows):
        """Once, to the end of the driver, which may be its own."""
        self.starts += 1
        command = [*COMMAND, "--seeds", str(self.n_seeds), "--out", str(self.folder)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.driver = subprocess.Popen(command, env={**os.environ, MARK: self.mark}, **quiet)
        while self.driver.poll() is None:
            if sum(self.blows.values()) < n_blows:
                with suppress(subprocess.TimeoutExpired):
                    self.driver.wait(self.rng.uniform(0.0, 1.0))
                self._strike()
            else:
                self.driver.wait(LONGEST_SIEGE)
            self._check()

    def _strike(self):
        """Kill one of a role that is drawn first, as soon as there is one: each gets its part. The
        first blow is the driver's, when it has something to lose."""
        role = self.rng.choice(sorted(BLOWS)) if self.blows else "driver"
        while not (there := self._roles().get(role)) or not self._has_something_to_lose():
            if self.driver.poll() is not None:
                return
            self._check()
        victim, blow = self.rng.choice(there), self.rng.choice(BLOWS[role])
        with suppress(psutil.NoSuchProcess):
            below = victim.children() if role == "lane" else []
            victim.send_signal(blow)
            if blow == signal.SIGSTOP:
                time.sleep(self.rng.uniform(0.0, 0.1))
                victim.kill()
            self.blows[f"{role} {blow.name}"] += 1
            assert _wait_until(lambda: not any(map(_runs, below))), "a child outlived its lane"

    def _has_something_to_lose(self):
        return self.blows or self.written.count(b"\n") >= 3

    def _check(self):
        """What was ever written is what it was, where it was."""
        found = self.path.read_bytes() if self.path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        assert whole.startswith(self.written)
        self.written = whole

    def _roles(self):
        roles = {}
        for process in self._processes():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                roles.setdefault(self._role(process), []).append(process)
        return roles

    def _role(self, process):
        """Root and children have sessions of their own, lanes are in that of their root."""
        if process.pid == self.driver.pid:
            return "driver"
        if os.getsid(process.pid) != process.pid:
            return "lane"
        return "root" if process.ppid() == self.driver.pid else "child"

    def _processes(self):
        """All of ours that run, but for helpers of a driver, such as git."""
        return [
            process
            for process in psutil.process_iter()
            if _mark(process) == self.mark and _runs(process) and "python" in process.name()
        ]


def test_whoever_is_killed_all_is_measured_and_nothing_written_is_lost(tmp_path):
    siege = Siege(tmp_path, n_seeds=2, seed=1)

    siege.lay(n_blows=5)

    _is_as_if_nothing_had_happened(siege)


@pytest.mark.slow
def test_a_hundred_blows(tmp_path, capsys):
    blows, starts = Counter(), 0

    for seed in itertools.count():
        siege = Siege(tmp_path / str(seed), n_seeds=5, seed=seed)
        siege.lay(n_blows=min(12, 100 - blows.total()))
        _is_as_if_nothing_had_happened(siege)
        blows += siege.blows
        starts += siege.starts
        if blows.total() == 100:
            break

    with capsys.disabled():
        sys.stdout.write(f"\n{blows.total()} blows, {starts} starts: {sorted(blows.items())}\n")
    assert {blow.split()[0] for blow in blows} == set(BLOWS)


def _is_as_if_nothing_had_happened(siege):
    assert siege.is_won()
    ok = Counter(record.trial.id for record in store.read(siege.folder) if record.status == "ok")
    assert set(ok.values()) == {1}


def _mark(process):
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None


def _runs(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait_until(condition):
    end = time.monotonic() + SECONDS_TO_GO
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
