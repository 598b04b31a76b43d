"""What this machine has to give: cores that a trial can have for itself, and memory."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")

PATIENCE = 1.0
"""Seconds to wait for a core: one of a killed process comes free once it is cleared away."""


def cores() -> list[tuple[int, ...]]:
    """The physical cores that this process may run on, each as its logical CPUs, last core first.

    The first core of a machine serves most interrupts. No more than the quota of a container.

    >>> cores() == sorted(cores(), reverse=True)
    True
    """
    allowed = os.sched_getaffinity(0)
    siblings = {tuple(sorted(_siblings(cpu) & allowed)) for cpu in allowed}
    return sorted(siblings, reverse=True)[: _quota()]


@contextmanager
def claimed_cores(count: int) -> Iterator[tuple[int, ...] | None]:
    """Claim physical cores that no other trial of this user has; None if too few are left.

    A claim is a file lock, so it ends with the process that made it, however that ends, and holds
    against other runs and against workers of a cluster on this machine.

    Yields:
        A logical CPU of each of ``count`` cores, to be pinned to.
    """
    end = time.monotonic() + PATIENCE
    while (locks := _locked(count)) is None and time.monotonic() < end and count <= len(cores()):
        time.sleep(0.02)
    try:
        yield tuple(locks) if locks is not None else None
    finally:
        for descriptor in (locks or {}).values():
            os.close(descriptor)


@contextmanager
def claimed_gpu() -> Iterator[None]:
    """The GPU, the first that may be seen, once no other trial of this user has it."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    descriptor = _lock(f"gpu-{seen}", wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def available_memory() -> int:
    """Bytes that can be had now without swapping, by the system and by the limit of a container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, IndexError):
        words = MEMINFO.read_text().split()
        found.append(int(words[words.index("MemAvailable:") + 1]) * 1024)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            found.append(int((CGROUPS / name).read_text()))
    return min(found)


def _locked(count: int) -> dict[int, int] | None:
    """Locks of so many cores by the first CPU of each, or none at all."""
    locks: dict[int, int] = {}
    for core in cores():
        if len(locks) == count:
            break
        if (descriptor := _lock(str(core[0]))) is not None:
            locks[core[0]] = descriptor
    if len(locks) == count:
        return locks
    for descriptor in locks.values():
        os.close(descriptor)
    return None


def _lock(name: str, *, wait: bool = False) -> int | None:
    """Descriptor of a lock; None if another has it and we do not wait, or if there are no locks."""
    folder = Path(tempfile.gettempdir()) / f"embench-cores-{os.getuid()}"
    try:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _siblings(cpu: int) -> set[int]:
    """The logical CPUs of one core."""
    try:
        text = (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return {cpu}
    ranges = (list(map(int, re.findall(r"\d+", part))) for part in text.split(","))
    return {cpu for ends in ranges for cpu in range(ends[0], ends[-1] + 1)}


def _quota() -> int | None:
    """Whole cores that a container may use, at least 1; None without a limit."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUPS / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    with suppress(OSError, ValueError):
        files = (CGROUPS / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
        quota_us, period_us = (int(file.read_text()) for file in files)
        return max(1, quota_us // period_us) if quota_us > 0 else None
    return None
