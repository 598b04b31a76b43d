"""Whatever a model does, its trial is one record with a sentence, in time, and the next is fine."""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from embench.measuring.isolate import TrialServer
from embench.measuring.trial import run_trial
from embench.types import Spec, Trial

PATIENCE = 2.0
MEMORY = 300 * 2**20

MARK = "EMBENCH_TEST"
"""Environment variable by which a server's processes are known, whoever their parent is."""


class Marked(TrialServer):
    """A server whose processes can be found again."""

    def __init__(self, **options):
        super().__init__(1, patience=PATIENCE, **{"memory_limit": MEMORY, **options})
        self.mark = str(uuid.uuid4())

    def run(self, trial):
        os.environ[MARK] = self.mark
        try:
            return super().run(trial)
        finally:
            del os.environ[MARK]

    def processes(self):
        return [one for one in psutil.process_iter() if self._is_mine(one)]

    def left(self):
        """Processes that are neither the root nor a lane, as nothing is after a trial."""
        parents = {}
        for one in self.processes():
            with suppress(psutil.Error):
                parents[one.pid] = one.ppid()
        root = {pid for pid, parent in parents.items() if parent == os.getpid()}
        lanes = {pid for pid, parent in parents.items() if parent in root}
        return set(parents) - root - lanes

    def others_in_group(self, group):
        found = set()
        for one in self.processes():
            with suppress(ProcessLookupError):
                if os.getpgid(one.pid) == group != one.pid:
                    found.add(one.pid)
        return found

    def _is_mine(self, process):
        try:
            return process.environ().get(MARK) == self.mark and _runs(process)
        except psutil.Error:
            return False


@pytest.fixture(scope="module")
def server():
    with Marked(trials=[hostile()]) as running:
        yield running


@pytest.fixture(scope="module")
def sharing():
    """A server in which the trials of a model share a process."""
    with Marked(trials=[hostile()], isolation="model") as running:
        yield running


def hostile(deed="nothing", where="fit", **fields):
    return Trial(
        dataset=Spec("iris"),
        model=Spec("hostile:Hostile", {"deed": deed, "where": where}),
        **{"track": "default", "seed": 0, "time_limit": 20.0, **fields},
    )


@pytest.fixture(scope="module")
def nll():
    """What comes of a good fit."""
    return run_trial(hostile()).metrics["nll"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("deed", "where", "status", "words"),
    [
        ("sleep", "init", "timeout", "cut off while making model and data"),
        slow("hang_in_native_code", "predict", "timeout", "cut off while judging"),
        ("be_deaf", "fit", "timeout", "where a fit may take 0.5 s, a warm-up 3 s more"),
        ("stop_myself", "judgement", "timeout", "cut off while judging"),
        slow("print_for_ever", "judgement", "timeout", "cut off while judging"),
        ("segfault", "init", "crashed", "signal 11 (SIGSEGV) while making model and data"),
        ("segfault_in_a_thread", "fit", "crashed", "signal 11 (SIGSEGV) while warming up"),
        ("allocate_at_once", "fit", "out-of-memory", "a trial may ask for 0.293 GiB"),
        ("allocate_bit_by_bit", "fit", "out-of-memory", "a trial may ask for 0.293 GiB"),
        ("allocate_crumbs", "fit", "out-of-memory", "MemoryError; a trial may ask for 0.293 GiB"),
        ("allocate_in_torch", "fit", "out-of-memory", "can't allocate memory"),
        ("close_files", "fit", "crashed", "did the model close files?"),
        ("exit_by_exception", "fit", "crashed", "exit code 1 while warming up; its last words"),
        slow("exit_by_exception", "predict", "crashed", "SystemExit: that was it"),
        ("interrupt", "fit", "crashed", "its last words: KeyboardInterrupt"),
        ("raise_what_nobody_catches", "fit", "crashed", "Unheard: of course"),
        ("exit_well", "fit", "crashed", "the process ended itself with exit code 0 while warming"),
        slow("exit_well", "judgement", "crashed", "with exit code 0 while judging"),
        ("kill_myself", "fit", "crashed", "the process died of signal 9 (SIGKILL) while warming"),
        ("die_oddly", "fit", "crashed", "the process died of signal 40 while warming up"),
        ("kill_my_group", "fit", "crashed", "the process died of signal 15 (SIGTERM)"),
        ("kill_my_parent", "fit", "crashed", "the processes that run trials were killed 5 times"),
        ("shout", "fit", "error", "ValueError: no way aaa"),
        ("mumble", "fit", "crashed", "exit code 3 while warming up; its last words: \ufffd\ufffdl"),
    ],
)  # fmt: skip
def test_a_deed_is_one_record_and_the_next_trial_is_fine(server, nll, deed, where, status, words):
    trial = hostile(deed, where, time_limit=0.5 if status == "timeout" else 20.0)
    began = time.monotonic()

    record = server.run(trial)

    assert time.monotonic() - began < 20
    assert (record.trial, record.status, record.metrics) == (trial, status, {})
    assert words in record.message
    assert len(record.message) < 600
    assert record.message.isprintable()
    assert server.run(hostile()).metrics["nll"] == nll
    assert _wait_until(lambda: not server.left())


@pytest.mark.parametrize(
    "deed",
    ["fork", "fork_many", "fork_a_daemon", "fork_a_comet", "go_on_twice", "allocate_in_a_fork",
     "print_a_lot", "meddle"],
)  # fmt: skip
def test_who_fits_all_the_same_is_ok_and_leaves_nothing_running(server, nll, deed):
    record = server.run(hostile(deed))

    assert record.status == "ok", record.message
    assert record.metrics["nll"] == nll
    assert server.run(hostile()).metrics["nll"] == nll
    assert _wait_until(lambda: not server.left())


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("sleep", "no curve: cut off while drawing the curve"),
        ("segfault", "no curve: the process died of signal 11 (SIGSEGV)"),
        ("allocate_crumbs", "MemoryError"),
        ("exit_well", "no curve: the process ended itself with exit code 0"),
    ],
)
def test_what_goes_wrong_with_the_curve_leaves_the_judged_record(server, nll, deed, words):
    record = server.run(hostile(deed, "curve", time_limit=0.5 if deed == "sleep" else 20.0))

    assert record.status == "ok"
    assert record.metrics["nll"] == nll
    assert record.curve == ()
    assert words in record.message


def test_a_metric_that_is_no_number_is_left_out_and_said(server, small_trial):
    record = server.run(small_trial("hostile:NotCounted"))

    assert record.status == "ok"
    assert "n_iter" not in record.metrics
    assert "n_iter is left out: nan" in record.message


def test_global_random_states_are_those_of_the_trial_at_every_fit(server, small_trial):
    """Torch's, too, though nobody but the model imports it, and late."""
    first, again = (server.run(small_trial("hostile:Drawer", seed=3)) for _ in range(2))

    assert first.status == "ok", first.message
    assert first.metrics["nll"] == again.metrics["nll"]
    assert first.curve[-1][2] == first.metrics["nll"]


@pytest.mark.slow
def test_a_model_that_stops_its_lane_is_a_record_too(server, nll):
    record = server.run(hostile("stop_my_parent"))

    assert record.status == "crashed"
    assert "the processes that run trials were killed" in record.message
    assert server.run(hostile()).metrics["nll"] == nll
    assert _wait_until(lambda: not server.left())


@pytest.mark.parametrize("deed", ["meddle", "fork_a_daemon", "nothing"])
def test_trials_of_a_model_share_a_process_and_no_state(sharing, nll, deed):
    first, second = (sharing.run(hostile(deed, seed=seed)) for seed in (1, 0))

    assert first.status == second.status == "ok", second.message
    assert second.metrics["nll"] == nll


def test_a_shared_process_serves_all_trials_of_its_model(sharing):
    pids = [_only_number(sharing.run(hostile("tell_number", seed=seed))) for seed in range(3)]

    assert len(set(pids)) == 1


def test_a_fork_that_goes_on_with_the_trial_does_not_answer_for_the_next(sharing):
    trials = [hostile("go_on_twice", seed=seed) for seed in range(3)]

    records = [sharing.run(trial) for trial in trials]

    assert [record.trial for record in records] == trials


def test_what_a_shared_process_leaves_running_is_killed_and_it_is_not(sharing):
    pids = {_only_number(sharing.run(hostile("fork_an_orphan", seed=seed))) for seed in range(2)}

    assert len(pids) == 1
    assert _wait_until(lambda: not sharing.others_in_group(*pids))


def test_a_shared_process_that_dies_in_a_trial_harms_no_other(sharing, nll):
    sharing.run(hostile("nothing"))

    died = sharing.run(hostile("segfault"))

    assert died.status == "crashed"
    assert sharing.run(hostile("nothing")).metrics["nll"] == nll


def test_a_shared_process_killed_while_it_waits_is_nobodys_failure(sharing, nll):
    pid = _only_number(sharing.run(hostile("tell_number")))
    os.kill(pid, signal.SIGKILL)
    assert _wait_until(lambda: not psutil.pid_exists(pid) or not _runs(psutil.Process(pid)))

    record = sharing.run(hostile("tell_number"))

    assert record.status == "ok", record.message
    assert record.metrics["nll"] == nll
    assert _only_number(record) != pid


def test_processes_that_wait_hold_a_share_of_the_limit_only(sharing):
    """128 MiB of 300 may not wait for the next trial; what holds next to nothing may."""
    hoarder = _only_number(sharing.run(hostile("hoard")))
    modest = _only_number(sharing.run(hostile("tell_number")))

    assert modest == _only_number(sharing.run(hostile("tell_number")))
    assert hoarder != _only_number(sharing.run(hostile("hoard")))


ENDLESS = """
import signal, time
if signal.getitimer(signal.ITIMER_REAL)[0] > 0:  # whoever imports this minds the time: it is over
    signal.setitimer(signal.ITIMER_REAL, 0.1)
time.sleep(3600)
"""


@pytest.mark.parametrize(
    "is_known",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["in the root", "in a lane"],
)
def test_imports_that_hang_or_kill_are_records_and_the_next_trial_is_fine(tmp_path, nll, is_known):
    """The root dies of them, then a lane, and then the child, which is the one to tell."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "deadly.py").write_text("import ctypes\nctypes.string_at(0)\n")
    (tmp_path / "quitting.py").write_text("raise SystemExit('not today')\n")
    names = ["endless", "deadly", "quitting"]
    bad = [replace(hostile(time_limit=0.5), model=Spec(f"{name}:Model")) for name in names]

    with Marked(trials=bad if is_known else (), folder=str(tmp_path)) as server:
        records = [server.run(trial) for trial in bad]
        again = server.run(replace(bad[1], seed=1))
        good = server.run(hostile())

    assert [record.status for record in records] == ["timeout", "crashed", "error"]
    assert "cut off while making model and data" in records[0].message
    assert "SIGSEGV" in records[1].message
    assert "not today" in records[2].message
    assert again.message == records[1].message
    assert good.metrics["nll"] == nll


def _only_number(record):
    """What the model warned of under a name of its own: the number of its process."""
    return int(record.message.split("process ")[1].split(";")[0])


def _runs(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found
