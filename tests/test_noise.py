"""What others did: seen where it happened, absent where nobody tells, said where it counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embench.measuring import noise
from embench.measuring.noise import MOST_TAKEN, Quietest, disturbance, sentinel, witnessed
from embench.types import Record, Spec, Trial

SPIN = "import os\nos.sched_setaffinity(0, {%d})\nprint(flush=True)\nwhile True: pass"
TAKERS = ("waited_seconds", "stolen_seconds", "throttled_seconds")
seconds = st.floats(1e-3, 1e3)
shares = st.floats(0.0, 3.0)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A kernel that tells what is written to its files; at first nothing."""
    monkeypatch.setattr(noise, "PROC", tmp_path)
    monkeypatch.setattr(
        noise,
        "THROTTLING",
        {
            tmp_path / "two": ("throttled_usec", 1e-6),
            tmp_path / "one": ("throttled_time", 1e-9),
        },
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.fixture
def pinned():
    """This process on one core, and the number of it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield max(before)
    os.sched_setaffinity(0, before)


def record(fits=((1.0, 0.0),), threads=1, **fields):
    trial = Trial(dataset=Spec("iris"), model=Spec("em"), track="default", seed=0, threads=threads)
    return Record(trial=trial, **{"status": "ok", "fits": tuple(fits), **fields})


def test_what_no_kernel_tells_is_absent(fake):
    with witnessed() as found:
        pass

    assert set(found) == {"involuntary_switches", "sentinel_seconds"}


def test_accounts_are_what_came_to_them_meanwhile(fake):
    """The units are those of the kernel: ns, ticks of 10 ms, us, us, and means over our CPUs."""
    fake(
        self__task__7__schedstat="5 1000000000 3",
        self__task__8__schedstat="5 0 3",
        stat="cpu 0 0 0 0 0 0 0 999\ncpu0 0 0 0 0 0 0 0 500\n"
        "cpu1 0 0 0 0 0 0 0 100\ncpu3 0 0 0 0 0 0 0 200\nintr 1",
        pressure__cpu="some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull",
        two="usage_usec 9\nthrottled_usec 250000\n",
    )

    with witnessed() as found:
        fake(
            self__task__7__schedstat="5 1500000000 3",
            self__task__8__schedstat="5 250000000 3",
            stat="cpu 0 0 0 0 0 0 0 999\ncpu0 0 0 0 0 0 0 0 900\n"
            "cpu1 0 0 0 0 0 0 0 110\ncpu3 0 0 0 0 0 0 0 230\nintr 1",
            pressure__cpu="some avg10=9.00 avg60=9.00 avg300=9.00 total=1500000\nfull",
            two="usage_usec 9\nthrottled_usec 1250000\n",
        )

    assert found["waited_seconds"] == pytest.approx(0.75)
    assert found["stolen_seconds"] == pytest.approx((0.1 + 0.3) / 2)
    assert found["pressure_seconds"] == pytest.approx(0.5)
    assert found["throttled_seconds"] == pytest.approx(1.0)


def test_the_older_groups_count_in_nanoseconds(fake):
    fake(one="nr_throttled 1\nthrottled_time 500000000\n")

    with witnessed() as found:
        fake(one="nr_throttled 2\nthrottled_time 750000000\n")

    assert found["throttled_seconds"] == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["", "nonsense", "cpu1 x", "some avg10=0"])
def test_accounts_in_another_form_are_absent_and_no_error(fake, text):
    fake(self__task__7__schedstat=text, stat=text, pressure__cpu=text, two=text)

    with witnessed() as found:
        pass

    assert {*TAKERS, "pressure_seconds"}.isdisjoint(found)


def test_a_neighbour_on_the_same_core_is_seen(pinned):
    if not os.path.exists("/proc/self/schedstat"):
        pytest.skip("this kernel does not tell how long threads wait")
    command = [sys.executable, "-c", SPIN % pinned]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as neighbour:
        neighbour.stdout.readline()

        with witnessed() as found:
            began, cpu = time.perf_counter(), time.process_time()
            while time.perf_counter() - began < 0.5:
                pass
            cpu_seconds = time.process_time() - cpu

        neighbour.kill()
    assert found["waited_seconds"] > 0.1
    assert found["waited_seconds"] == pytest.approx(0.5 - cpu_seconds, abs=0.2)
    assert "other processes had its core" in disturbance(record([(0.5, cpu_seconds)], noise=found))


def test_the_sentinel_is_short_and_repeatable():
    found = [sentinel() for _ in range(5)]

    assert 0 < min(found) < 0.05


def test_the_slower_of_two_sentinels_counts(monkeypatch):
    told = iter([0.001, 0.003])
    monkeypatch.setattr(noise, "sentinel", lambda: next(told))

    with witnessed() as found:
        pass

    assert found["sentinel_seconds"] == 0.003


@given(taker=st.sampled_from(TAKERS), share=shares, more=st.floats(1.0, 10.0), fit=seconds)
def test_who_takes_more_disturbs_no_less(taker, share, more, fit):
    less, much = (
        disturbance(record([(fit, 0.0)], noise={taker: part * fit}))
        for part in (share, more * share)
    )

    assert bool(much) or not less


@given(taker=st.sampled_from(TAKERS[::2]), share=shares, fit=seconds, scale=st.floats(1e-2, 1e2))
def test_only_the_share_of_the_time_counts(taker, share, fit, scale):
    """But for stolen time, which is told in ticks."""
    if abs(share - MOST_TAKEN) < 1e-6:
        return
    told = [
        disturbance(record([(by * fit, 0.0)], noise={taker: by * fit * share}))
        for by in (1.0, scale)
    ]

    assert bool(told[0]) == bool(told[1]) == (share > MOST_TAKEN)


def test_the_time_is_that_of_all_fits_and_all_threads():
    found = {"waited_seconds": 0.35}

    assert disturbance(record([(1.0, 0.0)], noise=found))
    assert not disturbance(record([(1.0, 0.0)] * 4, noise=found))
    assert not disturbance(record([(1.0, 0.0)], threads=4, noise=found))


def test_waiting_between_the_fits_does_not_count():
    found = {"waited_seconds": 5.0}

    assert not disturbance(record([(1.0, 1.0)] * 3, noise=found))
    assert "20 %" in disturbance(record([(1.0, 0.8)] * 3, noise=found))


def test_a_tick_stolen_from_a_short_fit_is_no_disturbance():
    assert not disturbance(record([(0.002, 0.002)], noise={"stolen_seconds": 0.01}))
    assert disturbance(record([(0.002, 0.002)], noise={"stolen_seconds": 0.02}))


@given(slowdown=st.floats(1.0, 10.0), best=st.floats(1e-5, 1e-1))
def test_a_core_is_slow_against_the_best_it_was(slowdown, best):
    found = disturbance(record(noise={"sentinel_seconds": slowdown * best}), best)

    assert bool(found) == (slowdown * best / best > noise.MOST_SLOWDOWN)


def test_nothing_is_said_of_what_nobody_fitted_or_told():
    assert disturbance(record([], noise={"waited_seconds": 5.0})) == ""
    assert disturbance(record()) == ""
    assert disturbance(record(noise={"sentinel_seconds": 1.0})) == ""


def test_the_sentence_names_all_who_disturbed():
    found = dict.fromkeys(TAKERS, 0.51) | {"sentinel_seconds": 3.0}

    words = disturbance(record(noise=found), 1.0)

    assert words.count(" % of the time") == 3
    assert words.endswith("its core was 3 times slower than at its best")


def test_each_machine_is_held_against_itself_alone():
    quietest = Quietest()
    here = record(environment={"host": "a", "cpu": "x"}, noise={"sentinel_seconds": 0.001})
    there = replace(here, environment={"host": "b", "cpu": "x"}, noise={"sentinel_seconds": 0.002})
    for one in (here, there):
        quietest.learn(one)

    assert quietest.judged(there).disturbed == ""
    assert quietest.judged(replace(there, environment=here.environment)).disturbed != ""


@pytest.mark.parametrize("fields", [{"status": "timeout"}, {"grade": "quality"}])
def test_only_seconds_that_count_are_disturbed(fields):
    noisy = record(noise={"waited_seconds": 5.0})

    assert Quietest().judged(noisy).disturbed != ""
    assert Quietest().judged(replace(noisy, **fields)).disturbed == ""
