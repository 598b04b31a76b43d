"""How trials are run, whatever they are: what was asked for, and the pool that takes them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from embench.measuring.isolate import Isolation
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
