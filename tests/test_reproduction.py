"""A trial that is run again: what must agree, what may differ, and what is not compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from embench import store
from embench.cli import main
from embench.comparing.reproduction import reproduction
from embench.measuring.execution import Execution
from embench.measuring.reproduce import again
from embench.measuring.trial import run_trial
from embench.types import Record, Spec

MACHINE = {"host": "a", "cpu": "Synthetic 9000"}
METRICS = {"nll": 1.5, "fit_seconds": 0.1, "n_iter": 20.0, "peak_memory": 2.0**26}


@pytest.fixture
def record(small_trial):
    def make(status="ok", environment=MACHINE, grade="timing", **metrics):
        return Record(
            trial=small_trial(),
            status=status,
            metrics={**METRICS, **metrics} if status == "ok" else {},
            environment=environment,
            grade=grade,
        )

    return make


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),
        ({"nll": 1.505, "fit_seconds": 0.12}, "reproduced"),
        ({"fit_seconds": 0.2}, "costs differ"),
        ({"fit_seconds": 0.05}, "costs differ"),
        ({"n_iter": 40}, "costs differ"),
        ({"nll": 1.6}, "not reproduced"),
        ({"nll": 1.4, "fit_seconds": 0.2}, "not reproduced"),
        ({"status": "timeout"}, "not reproduced"),
    ],
)
def test_quality_before_costs_and_either_direction_counts(record, changes, verdict):
    assert reproduction(record(), record(**changes)).verdict == verdict


@pytest.mark.parametrize("other", [{"environment": {**MACHINE, "host": "b"}}, {"grade": "quality"}])
def test_seconds_of_another_machine_or_of_shared_cores_are_not_compared(record, other):
    found = reproduction(record(), record(fit_seconds=5.0, **other))

    agreements = {line.metric: line.agreement for line in found.lines}
    assert agreements["fit_seconds"] == "not compared"
    assert agreements["nll"] == agreements["n_iter"] == "agrees"
    assert found.verdict == "reproduced"


def test_the_same_failure_again_is_a_reproduction(record):
    assert reproduction(record("timeout"), record("timeout")).verdict == "reproduced"


def test_a_trial_of_old_code_is_run_with_the_code_of_now_and_that_is_said(small_trial):
    here = Execution(isolation="none")
    old = replace(small_trial(), model=Spec("em", {}, "of yesterday"))

    now, otherwise = again(Record(trial=old, status="ok", environment={"cpu": "abacus"}), here)

    assert now.status == "ok", now.message
    assert any("of yesterday then" in sentence for sentence in otherwise)
    assert any("cpu: abacus then" in sentence for sentence in otherwise)


def test_from_the_command_line_quality_is_the_same_to_the_last_digit(
    tmp_path, small_trial, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trial = again(Record(trial=small_trial(), status="ok"), Execution(isolation="none"))[0].trial
    with store.writing(store.RESULTS / "run") as writer:
        writer.append(run_trial(trial))

    done = CliRunner().invoke(main, ["reproduce", trial.id[:12]])

    assert done.exit_code in (0, 1), done.output  # 1: the machine was busy
    [nll] = [line for line in done.output.splitlines() if line.startswith("nll")]
    assert "to the last digit" in nll
    assert len(store.read(store.RESULTS / "run")) == 1
