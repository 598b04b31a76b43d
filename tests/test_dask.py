"""On a Dask cluster of real processes: the same numbers, each once, whoever dies."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import psutil
import pytest

pytest.importorskip("distributed", reason="runs on a cluster need: pip install 'embench[dask]'")

import dask
from distributed import Client, Reschedule

from embench import store
from embench.measuring import cluster as driver
from embench.measuring import machine, worker
from embench.measuring.execution import Execution
from embench.measuring.isolate import LaneLost
from embench.measuring.plan import plan
from embench.measuring.run import execute
from embench.measuring.suite import customised, load_suite
from embench.measuring.trial import utc_now
from embench.types import InputError

# Those that start clusters run in one process, one after the other.
pytestmark = pytest.mark.xdist_group("dask")

MARK = "EMBENCH_TEST_CLUSTER"
"""Environment variable by which the processes of a cluster are known, whoever their parent is."""

DRIVER_IS_GONE = "the driver is gone"


class Cluster:
    """A scheduler and its workers, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder):
        self._folder = folder
        self.mark = str(uuid.uuid4())
        # Claims of cores are kept apart from those of others who test on this machine.
        self._environment = {**os.environ, MARK: self.mark, "TMPDIR": str(folder)}
        self._processes = []
        path = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(path))
        assert wait_until(path.exists)
        self.address = json.loads(path.read_text())["address"]

    def start_worker(self, *options):
        """Start one, and wait until it is there."""
        with Client(self.address, set_as_default=False) as client:
            before = len(client.nthreads())
            process = self._start("worker", self.address, *options)
            client.wait_for_workers(before + 1, timeout=60)
        return process

    @contextmanager
    def worker(self, *options):
        process = self.start_worker(*options)
        try:
            yield process
        finally:
            self._end(process)

    def servers(self):
        """Processes that run trials, whoever their parent is."""
        return [p for p in self._alive() if "embench.measuring.server" in p.cmdline()]

    def runs_by_worker(self):
        """How many runs each worker has had trials of, by its log, and whether it offers a GPU."""
        with Client(self.address, set_as_default=False) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            return {
                (worker, "GPU" in workers[worker]["resources"]): sum(
                    "Starting Worker plugin embench-" in line for _, line in log
                )
                for worker, log in client.get_worker_logs().items()
            }

    def execution(self, **how):
        fields = {"executor": "dask", "scheduler": self.address, "remeasure": False, **how}
        return Execution(**fields)

    def close(self):
        """End all; what runs trials has ended by itself."""
        for process in reversed(self._processes):
            self._end(process)
        gone = wait_until(lambda: not self._alive())
        left = [process.cmdline() for process in self._alive()]
        for process in self._alive():
            process.kill()
        assert gone, left

    def _start(self, *arguments):
        command = [
            sys.executable,
            "-m",
            "dask",
            *arguments,
            "--no-dashboard",
            "--host",
            "127.0.0.1",
        ]
        with open(self._folder / f"log{len(self._processes)}", "wb") as log:
            process = subprocess.Popen(
                command, env=self._environment, cwd=self._folder, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def _end(self, process):
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:  # Dask's own, when scheduler and worker end at once
            process.kill()
            process.wait()

    def _alive(self):
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """With a worker of one thread, without nanny and without a GPU."""
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.start_worker("--no-nanny", "--nthreads", "1")
        yield running
    finally:
        running.close()


@pytest.fixture
def siege(tmp_path):
    """A cluster to be killed, without workers yet."""
    running = Cluster(tmp_path)
    yield running
    running.close()


def planned(models="em", seeds=1, **asked):
    fields = {"datasets": "iris", "tracks": ["default"], **asked}
    suite = customised(load_suite("quick"), models=models, seeds=seeds, **fields)
    return plan(suite, elsewhere=True).trials


def results(trials, folder, how):
    return list(execute(trials, folder, how))


def times(records):
    return Counter(record.trial.id for record in records)


def test_the_numbers_are_those_of_a_local_run_and_each_is_on_the_disk_at_once(cluster, tmp_path):
    trials = planned("em,spec-em", seeds=2)
    here = results(trials, tmp_path / "here", Execution(isolation="none", remeasure=False))

    with cluster.worker("--nanny", "--nthreads", "2"):
        found, told = [], []
        for record in execute(trials, tmp_path / "dask", cluster.execution()):
            told.append(utc_now())
            found.append(record)
            assert store.read(tmp_path / "dask") == found

    assert times(found) == {trial.id: 1 for trial in trials}
    assert {r.trial.id: qualities(r) for r in found} == {r.trial.id: qualities(r) for r in here}
    assert told[0] < max(record.ended for record in found)
    # Two of the three threads are of a worker with a nanny.
    assert not any("MALLOC_TRIM_THRESHOLD_" in r.environment["variables"] for r in found)


def qualities(record):
    return {name: record.metrics[name] for name in ("nll", "ami", "ari", "n_iter")}


def test_a_trial_has_cores_for_itself_or_is_of_the_grade_quality(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", cluster._environment["TMPDIR"])
    trials, how = planned(), cluster.execution()

    (alone,) = results(trials, tmp_path / "alone", how)
    with ExitStack() as stack:
        claim = lambda: stack.enter_context(machine.claimed_cores(len(machine.cores())))  # noqa: E731
        assert wait_until(claim), "the cores of a run that is over are still held"
        (beside,) = results(trials, tmp_path / "beside", how)

    assert (alone.status, alone.grade) == ("ok", "timing")
    assert (beside.status, beside.grade) == ("ok", "quality")


def test_a_trial_for_a_gpu_goes_to_the_worker_that_offers_one(cluster, tmp_path):
    """There is no GPU: what counts is who was given the trial, not what became of it."""
    trials = planned(device="cuda", seeds=2)
    with pytest.raises(InputError, match=r"no worker offers a GPU; .* --resources GPU=1"):
        results(trials, tmp_path / "none", cluster.execution())

    with cluster.worker("--no-nanny", "--nthreads", "1", "--resources", "GPU=1"):
        before = cluster.runs_by_worker()
        records = results(trials, tmp_path / "one", cluster.execution())
        after = cluster.runs_by_worker()

    had = {has_gpu: after[worker, has_gpu] - before[worker, has_gpu] for worker, has_gpu in after}
    assert had == {True: 1, False: 0}
    assert len(records) == 2
    assert not (tmp_path / "none").exists()


def test_a_worker_with_another_embench_says_so_in_a_record(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "Run", partial(worker.Run, code="another"))

    (record,) = results(planned(), tmp_path, cluster.execution())

    assert record.status == "error"
    assert record.message.startswith("its worker runs another embench than the driver")


def test_a_worker_without_embench_says_so_in_a_record_and_lives(cluster, tmp_path, monkeypatch):
    def run_trial(*_):
        import embench_that_is_not_there  # noqa: F401

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_run_trial_there", lambda: run_trial)
        (record,) = results(planned(), tmp_path / "without", cluster.execution())
    (after,) = results(planned(), tmp_path / "with", cluster.execution())

    assert (record.status, after.status) == ("error", "ok")
    assert "cannot run trials: ModuleNotFoundError" in record.message
    assert "embench_that_is_not_there" in record.message


def test_what_is_sent_is_read_where_embench_is_not():
    """A name that cannot be looked up kills a worker, and scheduler and workers read it first."""
    from distributed.protocol.pickle import dumps

    reads = "import pickle, sys; sys.modules['embench'] = None; pickle.load(sys.stdin.buffer)"

    sent = dumps(driver._run_trial_there())

    subprocess.run([sys.executable, "-c", reads], input=sent, check=True)
    assert pickle.loads(sent).__name__ == "run_trial"  # by which Dask's dashboard knows it


def test_a_trial_whose_worker_closes_is_for_another_one(monkeypatch):
    def run(_):
        raise LaneLost("closed")

    monkeypatch.setattr(worker, "_host", lambda _: SimpleNamespace(run=run))
    common = worker.Run(threads=1, isolation="trial", memory_limit=None, folder=".")

    with pytest.raises(Reschedule):
        worker.run_trial(asdict(planned()[0]), asdict(common))


def test_a_folder_that_the_worker_does_not_have_is_named(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("a,b\n" + "".join(f"{i},{i % 7}\n" for i in range(40)))
    trials = planned(datasets="iris,mine.csv", n_components=[2])
    monkeypatch.setattr(driver.os, "getcwd", lambda: "/no/such/folder")

    records = results(trials, tmp_path / "run", cluster.execution())

    messages = {r.trial.dataset.name: (r.status, r.message) for r in records}
    assert messages["iris"] == ("ok", "")
    assert messages["mine.csv"][0] == "error"
    assert "cannot read mine.csv" in messages["mine.csv"][1]
    assert messages["mine.csv"][1].endswith(
        "its worker has no folder /no/such/folder, where the run was started"
    )


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_nothing_goes_on_when_the_driver_is_gone(cluster, tmp_path, blow):
    trials = ["--model", "em,bad_models:Sleeper", "--seeds", "1", "--time-limit", "3000"]
    process = start_driver(cluster, tmp_path, *trials)
    path = tmp_path / store.RECORDS
    assert wait_until(lambda: path.exists() and path.read_text() and cluster.servers(), 60)

    process.send_signal(blow)
    stderr = process.communicate()[1]

    assert wait_until(lambda: not cluster.servers()), "somebody goes on for nobody"
    assert process.returncode == (130 if blow == signal.SIGINT else -signal.SIGKILL)
    assert blow == signal.SIGKILL or "Traceback" not in stderr
    assert [record.status for record in store.read(tmp_path)] == ["ok"]


def start_driver(cluster, folder, *options):
    command = [
        sys.executable,
        "-m",
        "embench.cli",
        "run",
        "--dataset",
        "iris",
        "--track",
        "default",
    ]
    command += ["--executor", "dask", "--scheduler", cluster.address, "--no-remeasure"]
    command += ["--out", str(folder), *options]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost", "missing port number"),
        ("tcp://127.0.0.1:port", "invalid literal"),
        ("http://127.0.0.1:8786", "unknown address scheme 'http'"),
        ("inproc://here", "expected the address of one, such as tcp://HOST:8786"),
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(tmp_path, address, words):
    how = Execution(executor="dask", scheduler=address)

    with pytest.raises(InputError, match=words) as refused:
        results(planned(), tmp_path / "run", how)

    assert address in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "CONNECT_SECONDS", 0.3)

    with pytest.raises(InputError, match="no Dask scheduler answers at tcp://127"):
        results(planned(), tmp_path, Execution(executor="dask", scheduler="tcp://127.0.0.1:1"))


def test_a_worker_is_no_scheduler(cluster, tmp_path):
    with Client(cluster.address, set_as_default=False) as client:
        (address,) = client.nthreads()

    with pytest.raises(InputError, match="got that of a Worker"):
        results(planned(), tmp_path, Execution(executor="dask", scheduler=address))


def test_that_nobody_is_there_is_said_once_whenever_it_lasts(monkeypatch, caplog):
    clock, threads = SimpleNamespace(now=0.0), {}
    monkeypatch.setattr(driver.time, "monotonic", lambda: clock.now)
    client = SimpleNamespace(
        status="running",
        nthreads=lambda: threads,
        scheduler=SimpleNamespace(address="tcp://here:1"),
    )
    census = driver._Census(client)
    told = []

    for now, threads in enumerate([{}] * 10 + [{"a": 2, "b": 1}] + [{}] * 10):
        clock.now = float(now)
        assert census.threads() == sum(threads.values())
        told += [now] * len(caplog.records)
        caplog.clear()

    first = int(driver.WAITING_SECONDS) + 1
    assert told == [first, 10 + first]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"executor": "dask"}, "--scheduler tcp://HOST:8786"),
        ({"scheduler": "tcp://here:1"}, "is for --executor dask"),
        ({"executor": "dask", "scheduler": "tcp://here:1", "workers": 2}, "workers of its own"),
        ({"executor": "dask", "scheduler": "tcp://here:1", "isolation": "none"}, "one after"),
    ],
)
def test_what_does_not_go_together_is_said(how, words):
    with pytest.raises(InputError, match=words):
        Execution(**how)


# Whoever dies.


def works(process, nanny):
    """The process that is given the trials: a nanny's only child but for Python's own helpers."""
    if not nanny:
        return psutil.Process(process.pid)
    children = psutil.Process(process.pid).children()
    return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))


def kill_in_a_trial(siege, process):
    with Client(siege.address, set_as_default=False) as client:
        (name,) = [name for name, pid in client.run(os.getpid).items() if pid == process.pid]
        assert wait_until(lambda: client.processing([name])[name])
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("nanny", [False, True], ids=["no-nanny", "nanny"])
def test_of_two_workers_one_is_killed_and_every_trial_has_its_record(siege, tmp_path, nanny):
    option = "--nanny" if nanny else "--no-nanny"
    processes = [siege.start_worker(option, "--nthreads", "1") for _ in range(2)]
    trials = planned("em,spec-em", seeds=6)

    records = []
    with ThreadPoolExecutor(1) as thread:
        for record in execute(trials, tmp_path / "run", siege.execution()):
            records.append(record)
            if len(records) == 3:
                kill = thread.submit(kill_in_a_trial, siege, works(processes[0], nanny))
    kill.result()

    assert times(records) == {trial.id: 1 for trial in trials}
    assert {r.status for r in records} == {"ok"}
    assert store.read(tmp_path / "run") == records


@pytest.mark.slow
def test_the_only_worker_is_killed_and_another_one_takes_over(siege, tmp_path):
    first = siege.start_worker("--no-nanny", "--nthreads", "1")
    trials = planned("em,spec-em", seeds=2)

    records = []
    for record in execute(trials, tmp_path / "run", siege.execution()):
        records.append(record)
        if len(records) == 1:
            first.kill()
            siege._start("worker", siege.address, "--no-nanny", "--nthreads", "2")

    assert times(records) == {trial.id: 1 for trial in trials}
    assert {r.status for r in records} == {"ok"}


@pytest.mark.slow
def test_a_trial_under_which_worker_after_worker_dies_is_a_record_and_others_are_not(
    siege, tmp_path
):
    siege.start_worker("--nanny", "--nthreads", "1")

    records = results(planned("em,bad_models:Regicide", seeds=2), tmp_path / "run",
                      siege.execution())  # fmt: skip

    times = dask.config.get("distributed.scheduler.allowed-failures") + 1
    assert len(records) == 4
    for record in records:
        regicide = record.trial.model.name != "em"
        assert record.status == ("crashed" if regicide else "ok")
        assert record.message.startswith(f"{times} workers died while they ran it") == regicide


@pytest.mark.slow
@pytest.mark.parametrize("nanny", [False, True], ids=["no-nanny", "nanny"])
def test_a_worker_that_is_told_to_end_ends_soon_and_its_trial_is_for_the_next(
    siege, tmp_path, nanny
):
    option = "--nanny" if nanny else "--no-nanny"
    first = siege.start_worker(option, "--nthreads", "1")
    process = start_driver(siege, tmp_path, "--model", "bad_models:Sleeper", "--seeds", "1",
                           "--time-limit", "15")  # fmt: skip
    assert wait_until(lambda: len(siege.servers()) == 3, 60)

    first.terminate()
    assert wait_until(lambda: not siege.servers(), 8)  # Dask would give it 10
    first.wait(30)
    siege.start_worker(option, "--nthreads", "1")
    process.communicate()

    (record,) = store.read(tmp_path)
    assert record.status == "timeout"


@pytest.mark.slow
def test_the_scheduler_is_killed_and_the_same_command_goes_on(siege, tmp_path):
    siege.start_worker("--no-nanny", "--nthreads", "1")
    folder = tmp_path / "run"
    folder.mkdir()
    asked = ["--model", "em,spec-em,sklearn-em", "--seeds", "8"]
    process = start_driver(siege, folder, *asked)
    path = folder / store.RECORDS
    assert wait_until(lambda: path.exists() and path.read_text().count("\n") > 2, 60)

    siege.scheduler.kill()
    began = time.monotonic()
    stderr = process.communicate()[1]

    assert time.monotonic() - began < 30
    assert process.returncode == 2
    assert stderr.strip().splitlines()[-1] == (
        "Error: the connection to the Dask scheduler is lost; what is finished is kept, "
        "the same command resumes"
    )
    assert len(list(filter(None, stderr.splitlines()))) == 2  # and how many trials there are
    before = path.read_bytes()
    again = Cluster(make_folder(tmp_path / "again"))
    try:
        again.start_worker("--no-nanny", "--nthreads", "1")
        start_driver(again, folder, *asked).communicate()
    finally:
        again.close()
    assert path.read_bytes().startswith(before)
    ids = [record.trial.id for record in store.read(folder)]
    assert len(ids) == len(set(ids)) == 24


def make_folder(path):
    path.mkdir()
    return path


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
