"""What the machine has: a core is one trial's at a time, and a container has what it is given."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from embench.measuring import machine
from embench.measuring.machine import available_memory, claimed_cores, cores

CLAIM = """
import sys, time
from embench.measuring.machine import claimed_cores
with claimed_cores(int(sys.argv[1])) as cores:
    print(cores, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def nobody_else(tmp_path, monkeypatch):
    """Claims of a machine of our own, and little patience with those that are taken."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(machine, "PATIENCE", 0.05)


@pytest.fixture
def four_cores(monkeypatch, tmp_path):
    """Eight logical CPUs, of which 0 and 4, 1 and 5 ... are one core; no limits."""
    for cpu in range(8):
        _write(tmp_path / f"sys/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}")
    monkeypatch.setattr(machine, "CPUS", tmp_path / "sys")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.fixture
def claiming():
    """Start processes that claim so many cores each; what they got, and they."""
    started = []

    def start(count):
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(count)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process.stdout.readline().strip(), process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_core_is_claimed_by_one_process_at_a_time(claiming):
    everything = len(cores())
    found, _ = claiming(everything)

    with claimed_cores(1) as ours:
        assert ours is None
    assert found == str(tuple(core[0] for core in cores()))


def test_a_killed_process_claims_nothing(claiming):
    _, process = claiming(len(cores()))

    process.kill()
    process.wait()

    with claimed_cores(1) as ours:
        assert ours == (cores()[0][0],)


def test_claims_of_one_process_exclude_each_other_and_end(four_cores):
    with claimed_cores(2) as first, claimed_cores(2) as second, claimed_cores(1) as third:
        assert first == (3, 2)
        assert second == (1, 0)
        assert third is None

    with claimed_cores(4) as all_four:
        assert all_four == (3, 2, 1, 0)


def test_too_few_cores_are_none_at_all(four_cores):
    with claimed_cores(3), claimed_cores(2) as too_few, claimed_cores(1) as one:
        assert too_few is None
        assert one == (0,)


def test_more_cores_than_there_are_need_no_patience(four_cores, monkeypatch):
    monkeypatch.setattr(machine, "PATIENCE", 60.0)
    began = time.monotonic()

    with claimed_cores(5) as found:
        assert found is None

    assert time.monotonic() - began < 10


def test_a_core_that_comes_free_in_time_is_waited_for(claiming, monkeypatch):
    _, process = claiming(len(cores()))
    monkeypatch.setattr(machine, "PATIENCE", 20.0)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {process.pid}"])

    with claimed_cores(1) as found:
        assert found is not None

    killer.wait()


def test_without_a_place_for_claims_nothing_is_claimed(four_cores, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")

    with claimed_cores(1) as found:
        assert found is None


def test_a_core_is_all_its_logical_cpus_as_far_as_they_are_allowed(four_cores, monkeypatch):
    whole = cores()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 7})

    assert whole == [(3, 7), (2, 6), (1, 5), (0, 4)]
    assert cores() == [(7,), (1,), (0, 4)]


def test_siblings_may_be_told_as_a_range_or_not_at_all(four_cores, tmp_path, monkeypatch):
    for cpu in range(3):
        _write(tmp_path / f"sys/cpu{cpu}/topology/thread_siblings_list", "0-2\n")
    (tmp_path / "sys/cpu3/topology/thread_siblings_list").unlink()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})

    assert cores() == [(3,), (0, 1, 2)]


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "1000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "nonsense"}, 4),
    ],
)
def test_a_container_has_the_whole_cores_of_its_quota_and_at_least_one(
    four_cores, tmp_path, files, count
):
    for name, text in files.items():
        _write(tmp_path / "cgroup" / name, text)

    assert cores() == [(3, 7), (2, 6), (1, 5), (0, 4)][:count]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3000 * 1024),
        ({"memory.max": "max"}, 3000 * 1024),
        ({"memory.max": "1000"}, 1000),
        ({"memory/memory.limit_in_bytes": "2000"}, 2000),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 3000 * 1024),
    ],
)
def test_memory_is_what_the_tightest_limit_leaves(
    four_cores, tmp_path, monkeypatch, files, expected
):
    meminfo = _write(tmp_path / "meminfo", "MemFree: 1000 kB\nMemAvailable:    3000 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", meminfo)
    for name, text in files.items():
        _write(tmp_path / "cgroup" / name, text)

    assert available_memory() == expected


def test_memory_is_that_of_the_machine_where_nobody_tells_more(four_cores, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "absent")

    assert available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_two_trials_have_the_gpu_one_after_the_other():
    order = []

    def other():
        with machine.claimed_gpu():
            order.append("second")

    waiting = threading.Thread(target=other)
    with machine.claimed_gpu():
        waiting.start()
        waiting.join(timeout=0.2)
        order.append("first")
    waiting.join()

    assert order == ["first", "second"]


def test_another_gpu_is_another_claim(monkeypatch):
    with machine.claimed_gpu():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
        with machine.claimed_gpu():  # would wait for ever
            pass
