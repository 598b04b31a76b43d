"""Where trials are run: in this process, in processes beside it, or on a Dask cluster.

A pool takes trials and gives futures of their records. Wherever a trial is run, it is run by the
same child process (see `embench.measuring.isolate`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from embench.measuring.isolate import CAN_ISOLATE, Isolation, TrialServer
from embench.measuring.trial import run_trial
from embench.types import InputError, Record, Trial

if TYPE_CHECKING:
    from distributed import Client

Executor = Literal["local", "dask"]

CONNECT_SECONDS = 10

AHEAD = 2
"""Trials that a cluster is given for each of its threads, so that none waits for the driver."""


class WorkersLost(ConnectionError):
    """The cluster cannot be reached any more; what is finished is kept."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How trials are run: it is no part of a trial, and changes nothing of its quality.

    ``memory_limit`` is what a trial may ask for [bytes], None for what is available, divided by the
    ``workers``. ``prune``: larger trials of a family are not tried where a smaller one failed.
    ``remeasure``: trials that others disturbed are run once more.
    """

    isolation: Isolation = "trial"
    executor: Executor = "local"
    workers: int = 1
    scheduler: str | None = None
    memory_limit: int | None = None
    prune: bool = True
    remeasure: bool = True

    def __post_init__(self) -> None:
        if self.executor == "dask" and not self.scheduler:
            raise InputError("--executor dask: where? Say --scheduler tcp://HOST:8786")
        if self.executor == "local" and self.scheduler:
            raise InputError("--scheduler is for --executor dask")
        if self.isolation == "none" and (self.workers > 1 or self.executor == "dask"):
            raise InputError("--isolation none runs trials here, one after the other")


DEFAULT = Execution()


@dataclass(frozen=True)
class Pool:
    """Takes as many trials at a time as it has ``slots``.

    ``record`` is what became of a future; it raises `WorkersLost` where that cannot be known.
    """

    submit: Callable[[Trial], Future[Record]]
    slots: Callable[[], int]
    record: Callable[[Future[Record], Trial], Record] = lambda future, _: future.result()


def pool(trials: Sequence[Trial], how: Execution) -> AbstractContextManager[Pool]:
    """The pool that was asked for."""
    if how.executor == "dask":
        return _cluster(trials, how)
    return _here() if how.isolation == "none" or not CAN_ISOLATE else _beside(trials, how)


@contextmanager
def _here() -> Iterator[Pool]:
    """In this process: for debugging, and for models that exist in it only; nothing is cut off."""

    def submit(trial: Trial) -> Future[Record]:
        future: Future[Record] = Future()
        future.set_result(run_trial(trial))
        return future

    yield Pool(submit, slots=lambda: 1)


@contextmanager
def _beside(trials: Sequence[Trial], how: Execution) -> Iterator[Pool]:
    """In processes of this machine, each lane on cores of its own."""
    threads = max((trial.threads for trial in trials), default=1)
    # The server closes first: threads that wait for its processes are then free to end.
    with (
        ThreadPoolExecutor(how.workers) as waiting,
        TrialServer(
            threads,
            trials,
            isolation=how.isolation,
            memory_limit=how.memory_limit,
            workers=how.workers,
        ) as server,
    ):
        yield Pool(lambda trial: waiting.submit(server.run, trial), slots=lambda: how.workers)


@contextmanager
def _cluster(trials: Sequence[Trial], how: Execution) -> Iterator[Pool]:
    """On the workers of a Dask cluster, as many at a time on each as it has threads."""
    with _connected(str(how.scheduler)) as client:
        _check_gpus(client, trials)
        executors = {
            "cpu": client.get_executor(pure=False),
            "cuda": client.get_executor(pure=False, resources={"GPU": 1}),
        }

        def submit(trial: Trial) -> Future[Record]:
            return executors[trial.device].submit(_run_on_worker, trial, how, os.getcwd())

        def slots() -> int:
            return AHEAD * max(1, sum(client.nthreads().values()))

        yield Pool(submit, slots, _of_cluster)


@contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--executor dask needs: pip install 'embench[dask]'") from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {scheduler}: {error}; start one with: dask scheduler"
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_SECONDS)


def _check_gpus(client: Client, trials: Sequence[Trial]) -> None:
    """A trial for a GPU would wait for ever where no worker says that it has one."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    has_gpu = any(worker.get("resources", {}).get("GPU") for worker in workers)
    if workers and not has_gpu and any(trial.device == "cuda" for trial in trials):
        raise InputError(
            "--device cuda: no worker offers a GPU; start some with: dask worker --resources GPU=1"
        )


def _of_cluster(future: Future[Record], trial: Trial) -> Record:
    """The record; of a trial that kills one worker after the other a record that says so.

    Raises:
        WorkersLost: The connection is gone.
    """
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        return Record(trial=trial, status="crashed", message=f"its workers died: {error}")
    except (CancelledError, OSError) as error:
        raise WorkersLost("the connection to the scheduler is lost") from error


_servers: dict[tuple[Any, ...], TrialServer] = {}
"""Of a Dask worker: one for each way of running trials; it ends with the worker."""

_lock = Lock()


def _run_on_worker(trial: Trial, how: Execution, folder: str) -> Record:
    """What a worker does with a trial; files may be named by their place in the driver's folder."""
    key = (trial.threads, how.isolation, how.memory_limit, folder)
    with _lock:
        if key not in _servers:
            _servers[key] = TrialServer(
                trial.threads,
                isolation=how.isolation,
                memory_limit=how.memory_limit,
                workers=_threads_of_worker(),
                folder=folder if os.path.isdir(folder) else None,
            )
    return _servers[key].run(trial)


def _threads_of_worker() -> int:
    from distributed import get_worker

    return int(get_worker().state.nthreads)
