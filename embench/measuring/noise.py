"""What else the machine did meanwhile: the kernel's accounts, and a sentinel of known work.

A trial that others disturbed is no error of its model. It is marked, measured again, and said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from embench.types import Record

MOST_TAKEN = 0.1
"""Share of the threads' time that others may take: wall over CPU seconds of 1.1 in one thread."""

MOST_SLOWDOWN = 1.25
"""Of the sentinel over the quickest one of the run: above, the core itself was slower."""

SENTINEL_ROUNDS = 3
_MATRIX = np.linspace(0.0, 1.0, 96 * 96).reshape(96, 96)
_VECTOR = np.linspace(0.0, 1.0, 2**17)

PROC = Path("/proc")
THROTTLING = {
    Path("/sys/fs/cgroup/cpu.stat"): ("throttled_usec", 1e-6),
    Path("/sys/fs/cgroup/cpu/cpu.stat"): ("throttled_time", 1e-9),
}
"""Where the groups of a kernel count what a container was held back, and the unit [s]."""

TICK = 0.01
"""Seconds in the unit of /proc/stat."""

NOT_TOLD = (OSError, ValueError, IndexError)
"""What comes of reading an account that a kernel does not keep, or keeps in another form."""


@contextmanager
def witnessed() -> Iterator[dict[str, float]]:
    """What happened beside the body, filled when it is done; what a kernel does not tell is absent.

    Yields:
        ``waited_seconds`` in which threads of this process were ready and had no core,
        ``involuntary_switches``, ``stolen_seconds`` that a hypervisor took, on average, from the
        cores that it may run on, ``throttled_seconds`` of a container's quota, ``pressure_seconds``
        in which somebody on the machine waited for a core, and ``sentinel_seconds``, the slower of
        two runs of the sentinel, before and after.
    """
    found: dict[str, float] = {}
    quickest = sentinel()
    before = _accounts()
    yield found
    after = _accounts()
    found |= {name: after[name] - before[name] for name in after if name in before}
    found["sentinel_seconds"] = max(quickest, sentinel())


def sentinel() -> float:
    """Seconds of a fixed piece of work, a product and a sum, which nothing but the core decides."""
    return min(_sentinel_once() for _ in range(SENTINEL_ROUNDS))


def disturbance(record: Record, quickest_sentinel: float = 0.0) -> str:
    """What others did to the seconds of a trial, in a sentence; empty if nothing that matters.

    Args:
        record: Of a trial that was fitted.
        quickest_sentinel: Seconds of the quickest sentinel on its machine in the run, or 0.

    Example:
        >>> from embench.types import Spec, Trial
        >>> trial = Trial(dataset=Spec("iris"), model=Spec("em"), track="default", seed=0)
        >>> noise = {"waited_seconds": 0.5}
        >>> disturbance(Record(trial=trial, status="ok", fits=((2.0, 1.5),), noise=noise))
        'other processes had its core for 25 % of the time'
    """
    noise, threads = record.noise, record.trial.threads
    seconds = sum(wall for wall, _ in record.fits)
    waited = noise.get("waited_seconds", 0.0) / threads
    if threads == 1:  # some of it between the fits, where nothing is clocked
        waited = min(waited, seconds - sum(cpu for _, cpu in record.fits))
    takers = {
        "other processes had its core": waited,
        # A tick may have begun long before the fits.
        "the hypervisor had its core": max(0.0, noise.get("stolen_seconds", 0.0) - TICK),
        "the container was held back by its quota": noise.get("throttled_seconds", 0.0),
    }
    found = [
        f"{who} for {taken / seconds:.0%} of the time".replace("%", " %")
        for who, taken in takers.items()
        if seconds and taken > MOST_TAKEN * seconds
    ]
    slowdown = noise.get("sentinel_seconds", 0.0) / quickest_sentinel if quickest_sentinel else 0.0
    if slowdown > MOST_SLOWDOWN:
        found.append(f"its core was {slowdown:.2g} times slower than at its best")
    return ", ".join(found)


class Quietest:
    """Knows how quick the sentinel is on each machine when nobody disturbs it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def learn(self, record: Record) -> None:
        if seconds := record.noise.get("sentinel_seconds"):
            where = _machine(record)
            self._seconds[where] = min(seconds, self._seconds.get(where, seconds))

    def judged(self, record: Record) -> Record:
        """The record with what disturbed it: only seconds are disturbed, and only if they count."""
        if record.disturbed or record.status != "ok" or record.grade != "timing":
            return record
        best = self._seconds.get(_machine(record), 0.0)
        return replace(record, disturbed=disturbance(record, best))


def _machine(record: Record) -> str:
    """What tells one machine from another."""
    return f"{record.environment.get('host', '')} {record.environment.get('cpu', '')}"


def _sentinel_once() -> float:
    began = time.perf_counter()
    for _ in range(3):
        _MATRIX @ _MATRIX
    _VECTOR.sum()
    return time.perf_counter() - began


def _accounts() -> dict[str, float]:
    """The kernel's running accounts."""
    found: dict[str, float] = {}
    with suppress(*NOT_TOLD):
        threads = PROC.glob("self/task/*/schedstat")
        if waited := [int(path.read_text().split()[1]) * 1e-9 for path in threads]:
            found["waited_seconds"] = sum(waited)
    with suppress(ImportError, OSError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        found["involuntary_switches"] = float(usage.ru_nivcsw)
    with suppress(*NOT_TOLD):
        mine = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        rows = map(str.split, (PROC / "stat").read_text().splitlines())
        stolen = [int(row[8]) * TICK for row in rows if row[0] in mine]
        found["stolen_seconds"] = mean(stolen)
    with suppress(*NOT_TOLD):
        words = (PROC / "pressure/cpu").read_text().split(maxsplit=5)
        found["pressure_seconds"] = int(words[4].removeprefix("total=")) * 1e-6
    for path, (key, unit) in THROTTLING.items():
        with suppress(*NOT_TOLD):
            words = path.read_text().split()
            found["throttled_seconds"] = int(words[words.index(key) + 1]) * unit
    return found
