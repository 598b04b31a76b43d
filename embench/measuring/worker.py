"""What a Dask worker does with a trial: it has a child process run it, as everybody does.

The processes are those of `embench.measuring.isolate`, a server for each run. They are held for as
long as the run goes on there and no longer, for they hold cores.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock, Timer
from typing import Any

import dask
from distributed import Reschedule, Worker, WorkerPlugin, get_worker
from distributed.utils import sync

from embench import registry
from embench.measuring.environment import describe
from embench.measuring.isolate import Isolation, LaneLost, TrialServer
from embench.measuring.machine import available_memory
from embench.measuring.trial import utc_now
from embench.types import Record, Trial

CODE = registry.source_digest("embench")
"""Of the source that this process runs; it is read here, when it is imported."""

IDLE_SECONDS = 3.0
"""After so long without a trial the processes end, and their cores come free."""

_hosting = Lock()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the trials of a run have in common on all workers.

    ``folder`` is where it was started: files and own modules are named from there.
    """

    threads: int
    isolation: Isolation
    memory_limit: int | None
    folder: str
    code: str = CODE
    name: str = field(default_factory=lambda: f"embench-{uuid.uuid4().hex}")


def run_trial(trial: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Run a trial to its record, in a thread of a worker; all three as JSON has them.

    Raises:
        Reschedule: The worker is closing; the trial is for another one.
    """
    return _run(Trial.from_json(trial), Run(**run)).to_json()


def _run(trial: Trial, run: Run) -> Record:
    if run.code != CODE:
        words = "its worker runs another embench than the driver: install the same and restart it"
        return Record(
            trial=trial, status="error", message=words, ended=utc_now(), environment=describe()
        )
    try:
        record = _host(run).run(trial)
    except LaneLost:
        raise Reschedule from None
    if record.status == "error" and not os.path.isdir(run.folder):
        words = f"its worker has no folder {run.folder}, where the run was started"
        return replace(record, message=f"{record.message}; {words}")
    return record


def _host(run: Run) -> _Host:
    """The host of this run on this worker."""
    worker = get_worker()
    with _hosting:
        if run.name not in worker.plugins:
            sync(worker.loop, worker.plugin_add, _Host(run, worker), name=run.name)
        host = worker.plugins[run.name]
    assert isinstance(host, _Host)
    return host


class _Host(WorkerPlugin):
    """The processes of a run on a worker.

    They end with the worker, after a while without a trial, and as soon as one is cancelled that is
    under way: nobody waits for this run any more.
    """

    def __init__(self, run: Run, worker: Worker) -> None:
        self._run, self._worker = run, worker
        self._under_way: set[Any] = set()
        self._begun = 0
        _forget_settings_for_dask()
        self._server = TrialServer(
            run.threads,
            isolation=run.isolation,
            memory_limit=run.memory_limit or _share_of_memory(worker),
            folder=run.folder if os.path.isdir(run.folder) else None,
        )

    def run(self, trial: Trial) -> Record:
        task = self._worker.get_current_task()
        with _hosting:
            self._under_way.add(task)
            self._begun += 1
        try:
            return self._server.run(trial)
        finally:
            with _hosting:
                self._under_way.discard(task)
                later = Timer(IDLE_SECONDS, self._end_if_idle, [self._begun])
            later.daemon = True
            later.start()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Told by Dask when the state of any task changes."""
        if key in self._under_way and (start, finish) == ("executing", "released"):
            self._end()

    def teardown(self, worker: Worker) -> None:
        """Told by Dask when the worker closes, or when this is removed."""
        self._server.close()

    def _end_if_idle(self, begun: int) -> None:
        with _hosting:
            if not self._under_way and begun == self._begun:
                self._end()

    def _end(self) -> None:
        """From any thread, and soon: Dask is looking through its plugins when it tells us."""
        self._worker.loop.add_callback(self._leave)

    async def _leave(self) -> None:
        if self._worker.plugins.get(self._run.name) is self:
            await self._worker.plugin_remove(self._run.name)


def _forget_settings_for_dask() -> None:
    """Trials find the environment without what nannies set there for Dask's own sake.

    One of these has glibc return memory at once: scikit-learn's EM on 20,000 samples of 8 features
    then takes 2.5 times its CPU seconds.
    """
    for name in dask.config.get("distributed.nanny.pre-spawn-environ", {}):
        os.environ.pop(name, None)


def _share_of_memory(worker: Worker) -> int:
    """Bytes for one trial: what ``dask worker --memory-limit`` grants, by the worker's threads."""
    granted = worker.memory_manager.memory_limit or available_memory()
    return min(granted, available_memory()) // worker.state.nthreads
