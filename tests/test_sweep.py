"""A sweep: every trial once, what others disturbed once more, and never too many at a time."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from threading import Event

import pytest

from embench.measuring.execution import Execution, Pool, WorkersLost
from embench.measuring.sweep import disturbed_once, sweep
from embench.types import Record, Spec, Trial


class FakePool:
    """Gives records as it is told to, in the order in which they happen to be done."""

    def __init__(self, slots, answer, longest=0.003):
        self.slots, self.answer, self.longest = slots, answer, longest
        self.submitted = []
        self.pending = self.most_pending = 0

    @contextmanager
    def open(self):
        with ThreadPoolExecutor(16) as threads:

            def submit(trial):
                self.submitted.append(trial)
                self.pending += 1
                self.most_pending = max(self.pending, self.most_pending)
                return threads.submit(self._run, trial)

            def record(future, _):
                self.pending -= 1
                return future.result()

            yield Pool(submit, lambda: self.slots, record)

    def _run(self, trial):
        time.sleep(random.Random(trial.id).uniform(0.0, self.longest))
        return self.answer(trial)

    def sweep(self, trials, known=(), **how):
        with self.open() as pool:
            return list(sweep(trials, known, pool, Execution(**how)))


def trial(n_samples=1, seed=0, **fields):
    dataset = Spec("blobs", {"n_samples": n_samples})
    return Trial(dataset=dataset, model=Spec("em"), track="default", seed=seed, **fields)


def fine(of):
    return Record(trial=of, status="ok", fits=((1.0, 1.0),))


def disturbed(of):
    return Record(trial=of, status="ok", fits=((1.0, 0.5),), noise={"waited_seconds": 0.5})


def sometimes_disturbed(of):
    return disturbed(of) if of.seed % 3 == 0 else fine(of)


def times(trials):
    return Counter(one.id for one in trials)


def measured(records):
    return times(record.trial for record in records)


@pytest.fixture
def many():
    return [trial(seed=seed) for seed in range(40)]


@pytest.mark.parametrize("slots", [1, 3, 100])
def test_every_trial_is_run_once_and_no_more_at_a_time_than_there_is_room_for(many, slots):
    pool = FakePool(slots, fine)

    records = pool.sweep(many)

    assert measured(records) == times(many)
    assert pool.submitted == many
    assert pool.most_pending == min(slots, len(many))


def test_records_come_as_they_are_done(many):
    """The first takes long, and is waited for by nobody."""

    def answer(of):
        time.sleep(0.3 * (of.seed == 0))
        return fine(of)

    records = FakePool(2, answer).sweep(many[:10])

    assert records[-1].trial == many[0]


@pytest.mark.parametrize("slots", [1, 4])
def test_what_is_disturbed_is_run_once_more_after_all_others(many, slots):
    pool = FakePool(slots, sometimes_disturbed)

    records = pool.sweep(many)

    noisy = [one for one in many if one.seed % 3 == 0]
    assert measured(records) == times(many) + times(noisy)
    assert pool.submitted[: len(many)] == many
    assert times(pool.submitted[len(many) :]) == times(noisy)
    assert all(bool(record.disturbed) == (record.trial.seed % 3 == 0) for record in records)


def test_nothing_is_run_again_where_nobody_asks_for_it(many):
    records = FakePool(2, disturbed).sweep(many, remeasure=False)

    assert measured(records) == times(many)
    assert all(record.disturbed for record in records)


def test_what_was_disturbed_before_is_run_once_more_and_what_was_again_is_not(many):
    once, twice, quiet = many[:3]
    known = [disturbed(once), disturbed(twice), disturbed(twice), fine(quiet)]

    records = FakePool(2, disturbed).sweep(many[3:5], known)

    assert measured(records) == times([once, *many[3:5], *many[3:5]])


def test_a_failure_is_no_measurement(many):
    failed = Record(trial=many[0], status="crashed")

    records = FakePool(1, disturbed).sweep(many[:1], [failed])

    assert len(records) == 2


def test_a_core_found_slow_later_is_measured_again():
    """The first sentinel was slow: that is known when a quicker one is."""
    seconds = {0: 0.002, 1: 0.001, 2: 0.001}
    trials = [trial(seed=seed) for seed in seconds]

    def answer(of):
        noise = {"sentinel_seconds": seconds[of.seed]}
        return Record(trial=of, status="ok", fits=((1.0, 1.0),), noise=noise)

    records = FakePool(1, answer).sweep(trials)

    assert [record.trial.seed for record in records] == [0, 1, 2, 0]
    assert not records[0].disturbed
    assert records[-1].disturbed


def test_larger_ones_are_pruned_behind_one_that_failed_and_are_records_all_the_same():
    trials = [trial(n, seed) for seed in range(3) for n in (1, 10, 100)]

    def answer(of):
        status = "timeout" if of.dataset.params["n_samples"] >= 10 else "ok"
        return Record(trial=of, status=status)

    pool = FakePool(1, answer)
    records = pool.sweep(trials)

    assert measured(records) == times(trials)
    statuses = {(r.trial.dataset.params["n_samples"], r.trial.seed): r.status for r in records}
    assert {key for key, status in statuses.items() if status == "pruned"} == {
        (100, 0),
        (100, 1),
        (100, 2),
    }
    pruned = [record for record in records if record.status == "pruned"]
    assert all(record.message.startswith("not run: a smaller one timed out") for record in pruned)
    assert all(record.ended for record in pruned)
    assert not measured(pruned) & times(pool.submitted)


def test_known_failures_prune_but_not_where_nobody_asks_for_it():
    known = [Record(trial=trial(1), status="timeout")]
    larger = trial(10)

    pruned = FakePool(1, fine).sweep([larger], known)
    tried = FakePool(1, fine).sweep([larger], known, prune=False)

    assert [record.status for record in pruned] == ["pruned"]
    assert [record.status for record in tried] == ["ok"]


def test_a_pool_that_is_lost_ends_the_sweep(many):
    def answer(of):
        raise WorkersLost("gone")

    with pytest.raises(WorkersLost, match="gone"):
        FakePool(2, answer).sweep(many)


def test_no_trials_are_no_records():
    assert FakePool(1, fine).sweep([]) == []


def test_only_a_single_measurement_is_repeated():
    one, two, three = (Record(trial=trial(seed=s), status="ok", disturbed="by x") for s in range(3))
    again = Record(trial=two.trial, status="ok")

    assert disturbed_once([one, two, again, three]) == [one.trial, three.trial]


def test_what_fails_when_it_is_run_once_more_is_not_run_for_ever(many):
    def answer(of):
        first = times(pool.submitted)[of.id] == 1
        return disturbed(of) if first else Record(trial=of, status="crashed")

    pool = FakePool(1, answer)

    records = pool.sweep(many[:3])

    assert measured(records) == {one.id: 2 for one in many[:3]}


def test_what_was_disturbed_before_is_run_once_more_though_nothing_else_is_left(many):
    records = FakePool(1, fine).sweep([], [disturbed(many[0]), fine(many[1])])

    assert measured(records) == times(many[:1])


def test_room_that_comes_while_all_is_taken_is_used(many):
    """The first trial takes until the second has begun, for which there is no room at first."""
    second_began = Event()

    def answer(of):
        second_began.set() if of == many[1] else second_began.wait(10)
        return fine(of)

    pool, room = FakePool(1, answer), chain([1, 1], repeat(2))
    with pool.open() as opened:
        growing = replace(opened, slots=lambda: next(room))
        began = time.monotonic()
        list(sweep(many[:2], (), growing, Execution()))

    assert time.monotonic() - began < 5


def test_what_is_done_when_the_pool_is_lost_is_told(many):
    futures = {one.id: Future() for one in many}
    done = [one for one in many if one.seed % 3 == 0]
    told = []

    def submit(of):
        if of == many[-1]:  # all are there: now some are done, and the pool is lost
            for one in many:
                if one in done:
                    futures[one.id].set_result(fine(one))
                else:
                    futures[one.id].cancel()
                    futures[one.id].set_running_or_notify_cancel()
        return futures[of.id]

    def record(future, _):
        if future.cancelled():
            raise WorkersLost("gone")
        return future.result()

    pool = Pool(submit, lambda: len(many), record)
    with pytest.raises(WorkersLost):
        told.extend(record.trial for record in sweep(many, (), pool, Execution()))

    assert times(told) == times(done)
