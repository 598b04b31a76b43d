"""Threads are as many as were asked for, in every pool, and afterwards as many as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from embench.measuring import threads
from embench.measuring.threads import blas, limited_threads, pools, threads_in_force


def in_force():
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_pool_has_the_number_and_then_the_one_before(count):
    before = in_force()

    with limited_threads(count):
        assert set(in_force()) == {count}
        assert threads_in_force() == count

    assert in_force() == before


def test_an_error_leaves_the_number_as_it_was():
    before = in_force()

    with pytest.raises(ValueError, match="mine"), limited_threads(3):
        raise ValueError("mine")

    assert in_force() == before


def test_one_pool_that_takes_more_is_found():
    with limited_threads(1), threadpool_limits(2, user_api="blas"):
        assert threads_in_force() == 2


def test_pools_are_looked_for_again_only_where_something_was_imported(monkeypatch):
    looks = []
    monkeypatch.setattr(threads, "ThreadpoolController", lambda: looks.append(1))
    threads._pools.cache_clear()
    monkeypatch.setattr(threads.sys, "modules", dict(threads.sys.modules))

    pools()
    pools()
    assert len(looks) == 1
    threads.sys.modules["a_library"] = np
    pools()

    assert len(looks) == 2
    threads._pools.cache_clear()


def test_a_blas_is_told_with_its_version_and_its_kernels():
    loaded = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]

    found = blas()

    assert loaded
    for pool in loaded:
        words = [pool["internal_api"], pool["version"], pool.get("architecture")]
        assert " ".join(str(word) for word in words if word) in found
