"""The asv suite imports, stays affordable, keeps its history, and runs; speeds become words."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import subprocess
import sys
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
SPEED = ROOT / "benchmarks" / "speed.py"
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


def _speed(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SPEED), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def speed_table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SPEED.parent))
    return importlib.import_module("speed_table")


@pytest.fixture
def measured(speed_table: ModuleType) -> Callable[..., Any]:
    """A result of three rounds, made up: seconds of ten iterations in each."""
    from speed_worker import Reading

    def make(
        model: str, seconds: list[float], *, wall: float = 1.0, found: float = -3.0, **fields: Any
    ) -> Any:
        readings = [Reading(wall * one, one, 10, fields.get("threads", 1)) for one in seconds]
        job = speed_table.Job("A", 100, 2, 3)
        return speed_table.Result(model, fields.get("dtype", "float64"), job, readings, found)

    return make


def test_speeds_of_a_tiny_cell_are_measured_and_told() -> None:
    done = _speed("--quick", "--cell", "300x2x2", "--families", "tied")

    assert done.returncode == 0, done.stderr
    assert "cells: tied, float64 [ms per iteration]" in done.stdout
    assert "cells: tied, float32 [ms per iteration]" in done.stdout
    for label in ("sklearn-em", "em", "em vs float64"):
        assert re.search(rf"^ *(300x2x2 +)?{label} +[\d.]+ +[\d.]+", done.stdout, re.MULTILINE)
    assert len(re.findall(r"mean of 1 +em .*(faster|slower|tie)", done.stdout)) == 3
    assert "another result" not in done.stdout
    assert "onedal-em" in done.stdout, "left out of tied, or not installed: it says so"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--cells", "A,Z"), "'Z' is none of A, B, C, D, E, F"),
        (("--cell", "50000x10"), "expected 50000x10x5, got '50000x10'"),
        (("--families", "spherical"), "'spherical' is none of full, tied, diag"),
    ],
)
def test_a_wrong_cell_or_family_is_met_with_the_right_ones(
    option: tuple[str, str], said: str
) -> None:
    done = _speed(*option)

    assert done.returncode == 2
    assert said in done.stderr


def test_a_speedup_is_the_median_of_the_ratios_of_each_round(
    speed_table: ModuleType, measured: Callable[..., Any]
) -> None:
    baseline = measured("sklearn-em", [0.2, 0.8, 0.3])

    found = speed_table.speedup(measured("em", [0.1, 0.2, 0.3]), baseline)

    assert (found.middle, found.low, found.high) == pytest.approx((2.0, 1.0, 4.0))
    assert baseline.milliseconds == pytest.approx([20.0, 80.0, 30.0])


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (3.14, "3.1x faster"),
        (1.11, "1.1x faster"),
        (1.09, "tie"),
        (0.92, "tie"),
        (0.5, "2.0x slower"),
    ],
)
def test_a_speedup_within_a_tenth_is_a_tie(
    speed_table: ModuleType, ratio: float, words: str
) -> None:
    assert speed_table.verdict(ratio) == words


@pytest.mark.parametrize(
    ("fields", "remark"),
    [
        ({}, None),
        ({"wall": 1.2}, "wall / CPU 1.20"),
        ({"wall": 0.5}, "CPU / wall 2.00: it ran in more than one thread"),
        ({"threads": 2}, "2 threads instead of 1"),
        ({"found": -3.0 * (1 + 2e-8)}, "another result: log-likelihood -3.00000006 nat"),
        ({"found": -3.0 * (1 + 5e-9)}, None),
        ({"found": math.nan}, "another result"),
    ],
)
def test_what_spoils_a_speed_is_said(
    speed_table: ModuleType,
    measured: Callable[..., Any],
    fields: dict[str, Any],
    remark: str | None,
) -> None:
    baseline, candidate = measured("sklearn-em", [0.1] * 3), measured("em", [0.1] * 3, **fields)

    said = list(speed_table.remarks([baseline, candidate]))

    assert len(said) == (remark is not None)
    assert remark is None or (remark in said[0] and "em in float64" in said[0])
