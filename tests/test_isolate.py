"""A trial takes nothing with it: crashes, hangs and hunger become records with a sentence."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from embench.measuring import server as server_module
from embench.measuring.isolate import LaneLost, TrialServer, _death
from embench.measuring.machine import available_memory


@pytest.fixture(scope="module")
def server():
    with TrialServer(1) as running:
        yield running


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("Sleeper", "timeout", "a fit may take 0.5 s"),
        ("NativeHanger", "timeout", "a fit may take 0.5 s"),
        ("Segfaulter", "crashed", "SIGSEGV"),
        ("Exiter", "crashed", "goodbye from the model"),
        ("Hungry", "out-of-memory", "allocate"),
        ("Raiser", "error", "this model does not like your data"),
        ("NotANumber", "diverged", "means are not finite"),
        ("Cheat", "diverged", "weights sum to 2"),
    ],
)
def test_what_goes_wrong_becomes_a_record_with_a_sentence(
    server, small_trial, model, status, words
):
    trial = small_trial(f"bad_models:{model}", time_limit=0.5)
    began = time.monotonic()

    record = server.run(trial)

    assert time.monotonic() - began < 30
    assert (record.trial, record.status) == (trial, status)
    assert words in record.message
    assert record.environment["cpu"]
    assert record.metrics == {}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("oom_kill 3", "oom_kill 4", True), ("oom_kill 3", "oom_kill 3", False), ("", "", True)],
)
def test_a_process_killed_is_one_out_of_memory_only_where_the_system_says_so_or_says_nothing(
    tmp_path, monkeypatch, small_trial, before, after, expected
):
    vmstat = tmp_path / "vmstat"
    monkeypatch.setattr(server_module, "VMSTAT", vmstat)
    counts = []
    for text in (before, after):
        vmstat.write_text(f"pgfault 12\n{text}\n")
        counts.append(server_module._oom_kills())
    reply = {"exit_code": -signal.SIGKILL, "is_overdue": False, "stderr": "", "doing": "fitting"}

    is_oom_kill = counts[0] is None or counts[0] != counts[1]
    status, _ = _death(small_trial(), {**reply, "is_oom_kill": is_oom_kill})

    assert status == ("out-of-memory" if expected else "crashed")


def test_memory_is_what_is_available_divided_by_the_workers():
    one, four = (TrialServer(1, workers=workers)._memory_limit for workers in (1, 4))

    assert one == pytest.approx(available_memory(), rel=0.2)
    assert four == pytest.approx(one / 4, rel=0.2)


def test_a_server_that_is_closed_runs_nothing(small_trial):
    with TrialServer(1) as closed:
        pass

    with pytest.raises(LaneLost, match="closed"):
        closed.run(small_trial())


def test_the_sweep_goes_on_after_a_crash(server, small_trial):
    server.run(small_trial("bad_models:Segfaulter"))

    record = server.run(small_trial("em"))

    assert record.status == "ok"


@pytest.mark.parametrize("model", ["Chatterbox", "Forker", "Meddler"])
def test_a_model_that_misbehaves_but_fits_is_ok(server, small_trial, model):
    record = server.run(small_trial(f"bad_models:{model}"))

    assert record.status == "ok"
    assert record.metrics["nll"] == server.run(small_trial("em")).metrics["nll"]


def test_what_a_model_leaves_running_is_killed(server, small_trial):
    server.run(small_trial("em"))
    before = _servers_and_their_forks()

    server.run(small_trial("bad_models:Forker"))

    left = _servers_and_their_forks() - before
    assert _wait_until(lambda: not any(map(_alive, left)))


def test_threads_are_what_the_trial_says(small_trial):
    with TrialServer(2) as server:
        one, two = (server.run(small_trial(threads=threads)) for threads in (1, 2))

    assert one.environment["blas_threads"] == 1
    assert two.environment["blas_threads"] == 2


def test_two_trials_in_either_order_give_the_same_metrics(server, small_trial):
    trials = [small_trial("em", seed=1), small_trial("sklearn-em", seed=1)]

    forth = {trial.id: server.run(trial).metrics["nll"] for trial in trials}
    back = {trial.id: server.run(trial).metrics["nll"] for trial in reversed(trials)}

    assert forth == back


def test_the_trial_dies_with_its_caller(small_trial):
    child = os.fork()
    if child == 0:
        with TrialServer(1) as server:
            server.run(small_trial("bad_models:Sleeper", time_limit=3000.0))
    descendants = _wait_until(lambda: _sleepers(child))

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert _wait_until(lambda: not any(map(_alive, descendants)))


def _servers_and_their_forks():
    """Also those whose parent has died; other tests' may come and go, but end by themselves."""
    return {
        process
        for process in psutil.process_iter(["cmdline"])
        if "embench.measuring.server" in (process.info["cmdline"] or ())
    }


def _sleepers(pid):
    """The server and its child, once the child runs."""
    found = psutil.Process(pid).children(recursive=True)
    return found if len(found) >= 2 else []


def _alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
