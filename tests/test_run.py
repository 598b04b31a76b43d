"""A run from Python and killed from outside: nothing finished is lost, the rest resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import embench
from embench import store
from embench.measuring import executors
from embench.measuring.execution import Execution
from embench.measuring.plan import plan
from embench.measuring.run import execute, remaining
from embench.measuring.suite import customised, load_suite
from embench.types import InputError

ASKED = {"models": "em,spec-em", "datasets": "iris", "tracks": ["same-start"], "seeds": 2}
HERE = {"isolation": "none", "remeasure": False}


@pytest.fixture
def trials():
    return plan(customised(load_suite("quick"), **ASKED)).trials


def test_run_gives_a_row_per_trial_and_leaves_them_on_the_disk(tmp_path):
    frame = embench.run("quick", **ASKED, out=tmp_path, **HERE)

    assert len(frame) == len(store.read(tmp_path)) == 4
    assert set(frame["status"]) == {"ok"}
    assert set(frame["model"]) == {"em", "spec-em"}


def test_the_same_call_resumes_and_runs_nothing_twice(tmp_path, monkeypatch):
    first = embench.run("quick", **ASKED, out=tmp_path, **HERE)
    monkeypatch.setattr(executors, "run_trial", lambda trial: pytest.fail("ran again"))

    second = embench.run("quick", **ASKED, out=tmp_path, **HERE)

    assert first.equals(second)


def test_a_failed_trial_is_tried_again_and_the_new_record_counts(tmp_path, trials):
    bad = store.Record(trial=trials[0], status="crashed", message="a cosmic ray")
    with store.writing(tmp_path) as writer:
        writer.append(bad)

    todo = remaining(trials, tmp_path)
    for _ in execute(todo, tmp_path, Execution(**HERE)):
        pass

    assert todo == list(trials)
    assert {record.status for record in store.latest(store.read(tmp_path))} == {"ok"}


@pytest.mark.parametrize(
    ("records", "left", "left_as_it_is"),
    [
        ([], 1, 1),
        ([{"status": "ok"}], 0, 0),
        ([{"status": "timeout"}], 1, 1),
        ([{"status": "pruned"}], 1, 1),
        ([{"status": "ok"}, {"status": "crashed"}], 1, 1),
        ([{"status": "crashed"}, {"status": "ok"}], 0, 0),
        ([{"status": "ok", "disturbed": "by others"}], 1, 0),
        ([{"status": "ok", "disturbed": "by others"}, {"status": "ok"}], 0, 0),
        (2 * [{"status": "ok", "disturbed": "by others"}], 0, 0),
        ([{"status": "timeout"}, {"status": "ok", "disturbed": "by others"}], 1, 0),
    ],
)
def test_what_remains_is_what_has_no_good_record_or_a_disturbed_one(
    tmp_path, trials, records, left, left_as_it_is
):
    with store.writing(tmp_path) as writer:
        for fields in records:
            writer.append(store.Record(trial=trials[0], **fields))

    found = remaining(trials[:1], tmp_path)
    as_it_is = remaining(trials[:1], tmp_path, remeasure=False)

    assert found == list(trials[:left])
    assert as_it_is == list(trials[:left_as_it_is])


def test_a_disturbed_trial_is_run_again_once_by_the_same_call(tmp_path, trials, monkeypatch):
    noise = {"fits": ((1.0, 1.0),), "noise": {"waited_seconds": 0.5}}
    noisy = store.Record(trial=trials[0], status="ok", disturbed="by others", **noise)
    with store.writing(tmp_path) as writer:
        writer.append(noisy)
    monkeypatch.setattr(executors, "run_trial", lambda trial: noisy)
    here = Execution(isolation="none")

    first = list(execute(trials[:1], tmp_path, here))
    second = list(execute(trials[:1], tmp_path, here))

    assert len(first) == 1
    assert second == []


def test_isolated_and_not_the_numbers_are_the_same(tmp_path, trials):
    alone = [r.metrics["nll"] for r in execute(trials, tmp_path / "a", Execution(remeasure=False))]
    together = [r.metrics["nll"] for r in execute(trials, tmp_path / "b", Execution(**HERE))]

    assert alone == together


def test_new_code_is_measured_anew(tmp_path, trials, monkeypatch):
    for _ in execute(trials[:1], tmp_path, Execution(**HERE)):
        pass
    monkeypatch.setattr("embench.models.em.GaussianMixture.version", "another")

    fresh = plan(customised(load_suite("quick"), **ASKED)).trials

    assert len(remaining(fresh, tmp_path)) == len(fresh)


def test_global_random_state_is_not_touched(tmp_path):
    import numpy as np
    import torch

    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002

    embench.run("quick", **ASKED, out=tmp_path, **HERE)

    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_strings_and_lists_say_the_same(tmp_path):
    frames = [
        embench.run(
            "quick",
            models=models,
            datasets="iris",
            tracks=tracks,
            seeds=1,
            out=tmp_path,
            **HERE,
        )
        for models, tracks in (("em,spec-em", "default"), (["em", "spec-em"], ["default"]))
    ]

    assert frames[0].equals(frames[1])


def test_only_what_was_asked_for_comes_back(tmp_path):
    asked = {"datasets": "iris", "tracks": "default", "seeds": 1, **HERE}
    embench.run("quick", models="spec-em", out=tmp_path, **asked)

    records = embench.run("quick", models="em", out=tmp_path, **asked)

    assert list(records["model"]) == ["em"]
    assert len(store.read(tmp_path)) == 2


def test_what_is_left_out_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="sklearn-vb is left out of same-start"):
        embench.run("quick", models="em,sklearn-vb", datasets="iris", tracks="same-start", seeds=1,
                    out=tmp_path, **HERE)  # fmt: skip


def test_models_beside_a_script_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text("from sklearn.mixture import GaussianMixture as Mine")
    (tmp_path / "sub" / "script.py").write_text(
        "import embench\n"
        "records = embench.run('quick', models='mine:Mine', datasets='iris', tracks='default',\n"
        "                      seeds=1, out='run')\n"
        "print(*records['status'])\n"
    )

    done = subprocess.run(
        [sys.executable, "sub/script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["ok"]


def test_a_broken_suite_leaves_no_folder_behind(tmp_path):
    with pytest.raises(InputError, match="did you mean"):
        embench.run("quick", models="emm", out=tmp_path / "run")

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_killed_half_way_nothing_is_lost_and_the_rest_resumes(tmp_path, blow):
    command = [sys.executable, "-m", "embench.cli", "run", "--dataset", "iris", "--seeds", "4"]
    command += ["--model", "em,sklearn-em", "--track", "default", "--out", str(tmp_path)]
    command += ["--no-remeasure"]
    path = tmp_path / store.RECORDS

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, blow)
    process.wait()
    kept = [json.loads(line)["id"] for line in path.read_bytes().splitlines(keepends=True)[:2]]
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)

    ids = [record.trial.id for record in store.read(tmp_path)]
    assert "are done)" in resumed.stderr
    assert len(ids) == len(set(ids)) == 8
    assert ids[:2] == kept
