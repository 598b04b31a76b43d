"""Where a number was measured: what decides it is told, who measured it is not."""

from __future__ import annotations

import json
import os
import platform

import pytest

from embench.measuring import environment
from embench.measuring.environment import describe


@pytest.fixture
def fresh():
    """The machine is looked at again, and again afterwards."""
    environment._machine.cache_clear()
    yield
    environment._machine.cache_clear()


def test_variables_that_decide_how_libraries_compute_are_told(fresh, monkeypatch):
    for name in environment.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("MKL_CBWR", "")
    monkeypatch.setenv("SECRET", "mine")

    assert describe()["variables"] == "OMP_NUM_THREADS=3 OPENBLAS_CORETYPE=Haswell"


def test_the_host_is_told_from_others_and_not_named(fresh, monkeypatch):
    hosts = []
    for name in ("a-name-of-mine", "a-name-of-mine", "another"):
        environment._machine.cache_clear()
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        found = describe()
        hosts.append(found["host"])
        assert name not in json.dumps(found)

    assert hosts[0] == hosts[1] != hosts[2]
    assert all(len(host) == 8 and int(host, 16) >= 0 for host in hosts)


def test_the_blas_is_told():
    assert "openblas" in describe()["blas"] or "mkl" in describe()["blas"]


def test_cores_are_told_where_a_process_is_kept_to_some(fresh, monkeypatch):
    allowed = {0, 1, 2}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    free = describe()

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 1})
    kept = describe()

    assert (free["cores"], free["pinned_to"]) == (3, "")
    assert (kept["cores"], kept["pinned_to"]) == (3, "1,2")


def test_every_fact_can_be_written():
    assert json.loads(json.dumps(describe())) == describe()
