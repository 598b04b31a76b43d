"""Where trials are run: in this process, in processes beside it, or on a Dask cluster.

A pool takes trials and gives futures of their records. Wherever a trial is run, it is run by the
same child process (see `embench.measuring.isolate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from embench.measuring.isolate import CAN_ISOLATE, Isolation, TrialServer
from embench.measuring.trial import run_trial
from embench.types import InputError, Record, Trial

Executor = Literal["local", "dask"]


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
        if self.executor == "dask" and self.workers > 1:
            raise InputError("--workers is for --executor local: a cluster has workers of its own")
        if self.isolation == "none" and (self.workers > 1 or self.executor == "dask"):
            raise InputError("--isolation none runs trials here, one after the other")
        if self.isolation == "none" and self.memory_limit:
            raise InputError("--isolation none runs trials here, where nothing can be limited")


DEFAULT = Execution()


@dataclass(frozen=True)
class Pool:
    """Takes as many trials at a time as it has ``slots``.

    ``record`` is what became of a future; it raises `WorkersLost` where that cannot be known.
    """

    submit: Callable[[Trial], Future[Any]]
    slots: Callable[[], int]
    record: Callable[[Future[Any], Trial], Record] = lambda future, _: future.result()


def pool(trials: Sequence[Trial], how: Execution) -> AbstractContextManager[Pool]:
    """The pool that was asked for."""
    if how.executor == "dask":
        return _on_cluster(trials, how)
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


def _on_cluster(trials: Sequence[Trial], how: Execution) -> AbstractContextManager[Pool]:
    try:
        from embench.measuring.cluster import cluster
    except ImportError as error:
        raise InputError("--executor dask needs: pip install 'embench[dask]'") from error
    return cluster(trials, how)
