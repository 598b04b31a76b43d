"""The asv suite: it imports, stays affordable, keeps its history, and every benchmark runs."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from asv.config import Config

from embench.types import Record, Trial

ROOT = Path(__file__).parents[1]
ASV_SUITE = ROOT / "benchmarks" / "asv"
BENCHMARK = re.compile(r"(time|timeraw|mem|peakmem|track)_")
MAX_CELLS = 50


def _module(path: Path) -> ModuleType:
    """The file as a module of its own name: asv's package is called "asv", like asv itself."""
    spec = importlib.util.spec_from_file_location(f"asv_suite_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _benchmarks() -> dict[str, tuple[type, Callable[..., Any]]]:
    """Class and function of every benchmark, by name."""
    modules = [_module(path) for path in sorted(ASV_SUITE.glob("*.py"))]
    return {
        f"{owner.__name__}.{name}": (owner, function)
        for module in modules
        for _, owner in inspect.getmembers(module, inspect.isclass)
        if owner.__module__ == module.__name__
        for name, function in inspect.getmembers(owner, inspect.isfunction)
        if BENCHMARK.match(name)
    }


BENCHMARKS = _benchmarks()


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.load(ROOT / "asv.conf.json")


def test_cost_memory_and_quality_are_tracked() -> None:
    names = {name.partition(".")[2] for name in BENCHMARKS}

    assert names >= {"time_fit", "track_peak_memory", "track_excess_nll", "track_one_minus_ami"}


def test_suite_is_affordable() -> None:
    cells = sum(math.prod(map(len, owner.params)) for owner, _ in BENCHMARKS.values())

    assert 0 < cells <= MAX_CELLS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_history_survives_an_edit(name: str) -> None:
    _, function = BENCHMARKS[name]

    assert isinstance(vars(function).get("version"), str), f"set {name}.version by hand"


@pytest.mark.xdist_group("asv")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs_on_its_smallest_cell(name: str) -> None:
    owner, function = BENCHMARKS[name]

    value = _run_as_asv(owner, function, _smallest_cell(owner))

    assert (value is None) == function.__name__.startswith("time_")
    assert value is None or 0 < value < math.inf, "asv compares by ratio"


@cache
def _cached(owner: type) -> tuple[Any, ...]:
    """What asv hands to every benchmark of a class, made for its smallest cell alone."""
    if not hasattr(owner, "setup_cache"):
        return ()
    instance = owner()
    instance.params = [[value] for value in _smallest_cell(owner)]
    return (instance.setup_cache(),)


def _smallest_cell(owner: type) -> tuple[Any, ...]:
    return tuple(values[0] for values in owner.params)


def _run_as_asv(owner: type, function: Callable[..., Any], cell: tuple[Any, ...]) -> Any:
    """The benchmark between its setup and its teardown, where it has them."""
    instance = owner()
    given = (*_cached(owner), *cell)
    getattr(instance, "setup", lambda *_: None)(*given)
    value = function(instance, *given)
    getattr(instance, "teardown", lambda *_: None)(*given)
    return value


def test_failed_trial_fails_its_cell(small_trial: Callable[..., Trial]) -> None:
    owner, function = BENCHMARKS["Outcome.track_excess_nll"]
    record = Record(trial=small_trial(), status="diverged", message="the held-out NLL is inf")

    with pytest.raises(RuntimeError, match="diverged: the held-out NLL is inf"):
        function(owner(), {("em", 2, 2): record}, "em", 2, 2)


def test_asv_pins_the_torch_of_the_constraints(config: Config) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )

    assert config.matrix["req"]["torch"] == pins["torch"]


def test_asv_is_configured_for_plain_asv_run(config: Config) -> None:
    outputs = (config.env_dir, config.results_dir, config.html_dir)

    assert ROOT / config.benchmark_dir == ASV_SUITE
    assert config.environment_type == "virtualenv"
    assert config.branches == ["main"]
    assert all(path.startswith(".asv/") for path in outputs), "git ignores .asv/"
