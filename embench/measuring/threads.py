"""The number of threads of every numerical library: set, and verified."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""What libraries read when they are loaded: too late for a process that has loaded them."""


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Exactly ``count`` threads in torch and every BLAS and OpenMP pool loaded so far."""
    torch = sys.modules.get("torch")  # not imported for this: it takes a second
    before = torch.get_num_threads() if torch else count
    if torch:
        torch.set_num_threads(count)
    try:
        with pools().limit(limits=count):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


def threads_in_force() -> int:
    """The largest thread count that any loaded pool would use: asked, not assumed."""
    return max((pool["num_threads"] for pool in pools().info()), default=1)


def blas() -> list[str]:
    """Every BLAS that is loaded, with its version and the kernels it took for this processor."""
    found = [pool for pool in pools().info() if pool["user_api"] == "blas"]
    return sorted({" ".join(filter(None, map(str, _words(pool)))) for pool in found})


def pools() -> ThreadpoolController:
    """The pools of all libraries that are loaded."""
    return _pools(len(sys.modules))


@lru_cache(maxsize=1)
def _pools(n_modules: int) -> ThreadpoolController:
    """Looked for again, for 3 ms, only if something was imported: nothing else loads libraries."""
    return ThreadpoolController()


def _words(pool: dict[str, Any]) -> tuple[Any, ...]:
    return pool["internal_api"], pool.get("version"), pool.get("architecture")
