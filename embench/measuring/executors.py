"""Where trials are run: in this process, in processes beside it, or on a Dask cluster.

A pool takes trials and gives futures of their records. Wherever a trial is run, it is run by the
same child process (see `embench.measuring.isolate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from embench.measuring.execution import Execution, Pool
from embench.measuring.isolate import CAN_ISOLATE, TrialServer
from embench.measuring.trial import run_trial
from embench.types import InputError, Record, Trial


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
