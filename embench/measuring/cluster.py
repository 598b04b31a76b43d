"""Trials on the workers of a Dask cluster, seen from the driver; see `embench.measuring.worker`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from distributed import Client, KilledWorker, Security, rpc
from distributed.utils import silence_logging_cmgr

from embench.measuring.execution import Execution, Pool, WorkersLost
from embench.measuring.judging import in_one_line
from embench.measuring.trial import utc_now
from embench.measuring.worker import Run
from embench.types import InputError, Record, Trial

CONNECT_SECONDS = 10
WAITING_SECONDS = 5
"""After so long without a worker it is said that we wait for one: a nanny restarts its own in 3."""

_log = logging.getLogger(__name__)


@contextmanager
def cluster(trials: Sequence[Trial], how: Execution) -> Iterator[Pool]:
    """The pool of a cluster's workers, as many trials at a time on each as it has threads.

    No worker has a second trial waiting: Dask would lay a worker's death on that one, too.

    Raises:
        InputError: Nobody answers, or no worker has a GPU where trials are for one.
        WorkersLost: The scheduler is gone.
    """
    run = Run(
        threads=max((trial.threads for trial in trials), default=1),
        isolation=how.isolation,
        memory_limit=how.memory_limit,
        folder=os.getcwd(),
    )
    with _connected(str(how.scheduler)) as client:
        census = _Census(client)
        while not census.threads():
            time.sleep(0.1)
        _check_gpus(client, trials)
        executors = {
            "cpu": client.get_executor(pure=False),
            "cuda": client.get_executor(pure=False, resources={"GPU": 1}),
        }
        there = _run_trial_there()
        yield Pool(
            submit=lambda trial: executors[trial.device].submit(there, asdict(trial), asdict(run)),
            slots=lambda: max(1, census.threads()),
            record=_record,
        )


@contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    """A client that is silent: what is worth saying is said by us."""
    with silence_logging_cmgr(logging.CRITICAL + 1):
        _check_answer(scheduler)
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        try:
            yield client
        finally:
            with suppress(OSError):
                client.close(timeout=CONNECT_SECONDS)


def _check_answer(scheduler: str) -> None:
    """See who answers: a client would wait for long, and would not go in silence.

    Raises:
        InputError: It is not a scheduler.
    """
    expected = f"--scheduler {scheduler}: expected the address of one, such as tcp://HOST:8786"
    try:
        # In a thread: a notebook has a loop of its own in this one.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(asyncio.run, _identity(scheduler)).result()["type"]
    except OSError as error:
        words = str(error) or f"nothing in {CONNECT_SECONDS} s"
        raise InputError(
            f"no Dask scheduler answers at {scheduler}: {words}; start one with: dask scheduler"
        ) from error
    except Exception as error:
        raise InputError(f"{expected}: {error}") from error
    if found != "Scheduler":
        raise InputError(f"{expected}, got that of a {found}")


async def _identity(address: str) -> dict[str, Any]:
    arguments = Security().get_connection_args("client")
    async with rpc(address, connection_args=arguments) as server:
        return await asyncio.wait_for(server.identity(), CONNECT_SECONDS)


def _run_trial_there() -> Callable[..., Any]:
    """`embench.measuring.worker.run_trial`, as code that Dask sends and not as a name that it looks
    up: a worker without this embench would die of the name, and a scheduler need not have it."""

    def run_trial(*args: Any) -> Any:
        from embench.measuring import worker

        return worker.run_trial(*args)

    return run_trial


class _Census:
    """Counts the threads of all workers, and says so when there have been none for a while."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen = time.monotonic()
        self._is_told = False

    def threads(self) -> int:
        """How many there are now.

        Raises:
            WorkersLost: The scheduler is gone.
        """
        if self._client.status != "running":
            raise _lost()
        try:
            found = sum(self._client.nthreads().values())
        except OSError as error:
            raise _lost() from error
        if found:
            self._seen, self._is_told = time.monotonic(), False
        elif not self._is_told and time.monotonic() - self._seen > WAITING_SECONDS:
            address = self._client.scheduler.address
            _log.warning("waiting for workers; start some with: dask worker %s", address)
            self._is_told = True
        return found


def _check_gpus(client: Client, trials: Sequence[Trial]) -> None:
    """A trial for a GPU would wait for ever where no worker says that it has one."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    has_gpu = any(worker.get("resources", {}).get("GPU") for worker in workers)
    if not has_gpu and any(trial.device == "cuda" for trial in trials):
        raise InputError(
            "--device cuda: no worker offers a GPU; start some with: dask worker --resources GPU=1"
        )


def _record(future: Future[Any], trial: Trial) -> Record:
    """The record of a trial; where its workers could not give one, one that says so.

    Raises:
        WorkersLost: The scheduler is gone.
    """
    try:
        return Record.from_json(future.result())
    except CancelledError:
        raise _lost() from None
    except KilledWorker as error:
        words = f"{error.allowed_failures + 1} workers died while they ran it, one after the other"
        return Record(trial=trial, status="crashed", message=words, ended=utc_now())
    except Exception as error:
        words = f"its worker cannot run trials: {type(error).__name__}: {error}"
        return Record(trial=trial, status="error", message=in_one_line(words), ended=utc_now())


def _lost() -> WorkersLost:
    return WorkersLost("the connection to the Dask scheduler is lost")
