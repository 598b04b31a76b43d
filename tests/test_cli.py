"""What a person types: results on stdout, one line for a mistake, exit codes, no traceback."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from embench import store
from embench.cli import main

FAST = ["--model", "em,sklearn-em", "--dataset", "iris", "--track", "default", "--seeds", "2"]


@pytest.fixture
def embench(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="embench")

    return run


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:  # a record for each trial, on a busy machine, too
        patch.setattr("embench.measuring.noise.disturbance", lambda *_: "")
        result = CliRunner().invoke(main, ["run", *FAST, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def test_a_run_says_where_its_records_are_and_what_comes_next(finished_run, embench):
    result = embench("run", *FAST, "--out", finished_run)

    assert result.exit_code == 0
    assert f"next: embench compare {finished_run}" in result.output
    assert "4 trials, all done" in result.output


def test_a_run_in_which_all_fails_is_no_success(embench):
    result = embench("run", "--model", "bad_models:Raiser", "--dataset", "iris", "--track",
                     "default", "--seeds", "1", "--out", "run")  # fmt: skip

    assert result.exit_code == 1
    assert "0 ok, 1 failed" in result.output
    assert "this model does not like your data" in result.stderr


def test_compare_prints_sentences_and_writes_a_page(finished_run, embench):
    result = embench("compare", finished_run)

    assert result.exit_code == 0
    assert "Take " in result.output
    assert "nan" not in result.output.split()
    page = finished_run / "report" / "report.html"
    assert page.stat().st_size > 10_000
    assert str(page) in result.output.replace("\n", "")


@pytest.mark.parametrize("style", ["csv", "json", "markdown", "html"])
def test_formats_go_to_stdout_alone(finished_run, embench, style):
    result = embench("compare", finished_run, "--format", style)

    assert result.exit_code == 0
    if style == "json":
        assert json.loads(result.stdout)["changes"]
    if style == "csv":
        assert result.stdout.startswith("track,dataset,metric,")
    assert ("<html" in result.stdout) == (style == "html")


def test_compare_takes_the_latest_run(embench, finished_run, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine").symlink_to(finished_run)

    assert (
        embench("compare", "--format", "csv").stdout
        == embench("compare", "mine", "--format", "csv").stdout
    )


def test_a_run_against_itself_passes_the_gate(finished_run, embench):
    result = embench("gate", "--baseline", finished_run, "--candidate", finished_run)

    assert (result.exit_code, "0 regressions" in result.output) == (0, True)


def test_the_gate_sees_quality_cost_and_nothing(finished_run, embench, tmp_path):
    def changed(name, **factors):
        with store.writing(tmp_path / name) as writer:
            for record in store.read(finished_run):
                metrics = {k: v * factors.get(k, 1) for k, v in record.metrics.items()}
                writer.append(type(record)(**{**vars(record), "metrics": metrics}))
        return tmp_path / name

    codes = [
        embench("gate", "--baseline", finished_run, "--candidate", run).exit_code
        for run in (
            changed("slower", fit_seconds=10.0, cpu_seconds=10.0),
            changed("worse", nll=1.5, fit_seconds=10.0),
            tmp_path / "nowhere",
        )
    ]

    assert codes == [1, 2, 4]


def test_a_misspelt_gate_is_neither_green_nor_a_quality_regression(embench):
    assert embench("gate", "--baselin", "a", "--candidate", "b").exit_code == 4


def test_a_reference_is_kept_and_moves_the_line_of_later_comparisons(
    finished_run, embench, tmp_path
):
    better = tmp_path / "better"
    with store.writing(better) as writer:
        for record in store.read(finished_run):
            metrics = {**record.metrics, "nll": record.metrics["nll"] - 0.5}
            writer.append(replace(record, metrics=metrics))

    said = [embench("reference", *runs).stdout for runs in ([finished_run], [better], [better])]
    [iris] = json.loads(embench("compare", finished_run, "--format", "json").stdout)["summary"][:1]

    ending = "results/reference/best-known.jsonl\n"
    assert said == [
        f"2 new, 0 better, 0 unchanged: {ending}",
        f"0 new, 2 better (by 0.5 nat at most), 0 unchanged: {ending}",
        f"0 new, 0 better, 2 unchanged: {ending}",
    ]
    assert iris["excess_nll"] >= 0.5 - 1e-6


def test_references_are_no_run(finished_run, embench, tmp_path):
    embench("reference", finished_run)

    result = embench("compare")

    assert (result.exit_code, "no run in results/ yet" in result.output) == (2, True)


def test_show_finds_a_trial_by_a_part_of_its_id(finished_run, embench):
    trial = store.read(finished_run)[0].trial

    result = embench("show", trial.id[-8:], "--run", finished_run)

    assert result.exit_code == 0
    assert trial.id in result.output
    assert "held-out NLL" in result.output


@pytest.mark.parametrize("command", ["models", "datasets", "suites"])
def test_lists_have_a_line_for_each(embench, command):
    result = embench(command)

    assert result.exit_code == 0
    assert all(len(line.split()) > 3 for line in result.output.splitlines())


TABLES = {
    "strings.csv": "a,b\nx,1\ny,2\nz,3\n",
    "nan.csv": "a,b\n1,\n2,3\n4,5\n",
    "inf.csv": "a,b\n1,inf\n2,3\n4,5\n",
    "empty.csv": "",
    "header.csv": "a,b\n",
    "few.csv": "a,b\n1,2\n3,4\n5,6\n7,8\n",
    "mixed.csv": "a,b\n1,2\n3,4\nn/a?,6\n",
    "good.csv": "a,b,kind\n" + "".join(f"{i},{i * i % 7},k{i % 2}\n" for i in range(40)),
}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run quik", "did you mean 'quick'"),
        ("run --model emm", "did you mean 'em'"),
        ("run --model em:n_inti=3", "did you mean 'n_init'"),
        ("run --model em:max_iter=lots", "'max_iter' parameter"),
        ("run --model em:n_components=0", "'n_components' parameter"),
        ("run --model =", "expected NAME:PARAMETER=VALUE"),
        ("run --dataset blob", "did you mean 'blobs'"),
        ("run --dataset blobs:n_components=0", "greater than 0, got 0"),
        ("run --dataset blobs:n_samples=5,n_components=9", "5 samples and 9 components"),
        ("run --track same-strat", "'same-start'"),
        ("run --n-components 0", "expected integers >= 1"),
        ("run --n-components two", "expected integers >= 1 like 2,3,5, got 'two'"),
        ("run --seeds 0", "--seeds"),
        ("run --device gpu", "--device"),
        ("run --label kind", "name a file"),
        ("run --data nowhere.csv", "cannot read nowhere.csv: No such file"),
        ("run --data strings.csv", "column 'a' holds 'x' in sample 1, expected numbers"),
        ("run --data nan.csv", "got nan in column 'b' of sample 1"),
        ("run --data inf.csv", "got inf in column 'b' of sample 1"),
        ("run --data empty.csv", "empty file"),
        ("run --data header.csv", "empty table"),
        ("run --data few.csv", "3 samples and 4 components"),
        ("run --data good.csv --label king", "did you mean 'kind'"),
        ("run --data good.csv --label kind --drop kind", "label and left out at once"),
        ("run --data good.csv --target king", "did you mean 'kind'"),
        ("run --data good.csv --target b --drop b", "target and left out at once"),
        ("run --data good.csv --target kind --n-components 2", "column 'kind' holds"),
        ("run --data good.csv --drop kind --target b", "--n-components 2,3,5"),
        ("run --target b", "--target names columns of --data"),
        ("run --model mdn", "mdn is left out on blobs"),
        ("run conditional --model em", "em is left out on inverse-sine, diabetes"),
        ("run --data mixed.csv", "column 'a' holds 'n/a?' in sample 3"),
        ("run --data flat.npy", "got shape (9,)"),
        ("run --data notes.txt", "notes.txt: expected a file that ends in .csv"),
        ("compare nowhere", "unknown run 'nowhere'"),
        ("compare", "no run in results/ yet"),
        ("show em-iris", "no records in results"),
        ("merge nowhere --out new", "unknown run 'nowhere'"),
        ("merge --out new", "Missing argument 'RUN...'"),
        ("export", "give --csv or --parquet, or an --out that ends in .csv or .parquet"),
        ("export --out table.txt", "give --csv or --parquet"),
        ("export --csv --parquet", "--csv and --parquet do not go together"),
        ("export --csv --out table.parquet", "--csv and --out table.parquet do not go together"),
        ("export --parquet --out -", "--parquet and --out - do not go together"),
        ("export --csv", "no run in results/ yet"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(embench, tmp_path, arguments, words):
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "flat.npy", np.arange(9.0))

    result = embench(*arguments.split())

    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error")]) == 1


def test_a_metric_or_baseline_that_is_not_there_is_a_mistake(finished_run, embench):
    metric = embench("compare", finished_run, "--metric", "nlll")
    baseline = embench("compare", finished_run, "--baseline", "sklearn-me")

    assert (metric.exit_code, baseline.exit_code) == (2, 2)
    assert "did you mean 'nll'" in metric.stderr
    assert "did you mean 'sklearn-em'" in baseline.stderr


def test_merge_puts_runs_into_one_and_says_what_comes_next(finished_run, embench, tmp_path):
    torn = tmp_path / "torn"
    torn.mkdir()
    written = (finished_run / store.RECORDS).read_bytes()
    (torn / store.RECORDS).write_bytes(written[: written.rfind(b"\n", 0, -1) + 20])

    result = embench("merge", torn, finished_run, "--out", "both runs")
    again = embench("merge", finished_run, "--out", "both runs")

    assert result.exit_code == 0, result.output
    assert f"the last line of {torn / store.RECORDS} is unfinished: left out" in result.stderr
    assert "4 records of 4 trials, 3 were the same: both runs/records.jsonl" in result.stdout
    assert result.stdout.endswith("next: embench compare 'both runs'\n")
    assert (tmp_path / "both runs" / store.RECORDS).read_bytes() == written
    assert again.exit_code == 2
    assert "both runs holds records already" in again.stderr


@pytest.mark.parametrize("style", ["csv", "parquet"])
def test_export_writes_beside_the_latest_run(finished_run, embench, tmp_path, style):
    embench("merge", finished_run, "--out", "results/mine")

    result = embench("export", f"--{style}")

    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 records: results/mine/records.{style}\n"
    table = {"csv": pd.read_csv, "parquet": pd.read_parquet}[style](
        tmp_path / "results" / "mine" / f"records.{style}"
    )
    assert table["nll"].tolist() == pytest.approx(store.read_frame(finished_run)["nll"].tolist())


def test_export_takes_its_format_from_the_name_of_the_file(finished_run, embench, tmp_path):
    result = embench("export", finished_run, finished_run, "--out", "table.parquet")

    assert result.stdout == "8 records: table.parquet\n"
    assert len(pd.read_parquet(tmp_path / "table.parquet")) == 8


def test_export_to_stdout_is_the_table_alone(finished_run, embench):
    result = embench("export", finished_run, "--out", "-")

    assert result.exit_code == 0
    assert pd.read_csv(io.StringIO(result.stdout))["run"].tolist() == ["run"] * 4


def test_an_export_that_cannot_be_written_or_has_nothing_to_write_is_a_mistake(
    finished_run, embench, tmp_path
):
    with store.writing(tmp_path / "empty"):
        pass

    nowhere = embench("export", finished_run, "--out", "nowhere/table.csv")
    full = embench("export", finished_run, "--csv", "--out", "/dev/full")
    empty = embench("export", "empty", "--csv")

    assert [result.exit_code for result in (nowhere, full, empty)] == [2, 2, 2]
    assert "cannot write nowhere/table.csv: No such file or directory" in nowhere.stderr
    assert "cannot write /dev/full: No space left on device" in full.stderr
    assert "no record in empty yet" in empty.stderr


def test_a_folder_that_cannot_be_written_is_a_mistake(embench, tmp_path):
    (tmp_path / "taken").write_text("")

    result = embench("run", *FAST, "--out", tmp_path / "taken" / "below")

    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


def test_your_own_file_ends_in_a_recommendation(embench, tmp_path):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 80)
    X = rng.normal(5.0 * kind[:, None], 1.0, (80, 2))
    pd.DataFrame({"x": X[:, 0], "y": X[:, 1], "kind": kind}).to_parquet(tmp_path / "my.parquet")

    ran = embench("run", "--data", "my.parquet", "--label", "kind", "--n-components", "1,2",
                  "--model", "em", "--seeds", "2", "--out", "mine")  # fmt: skip
    compared = embench("compare", "mine")

    assert ran.exit_code == compared.exit_code == 0, ran.output
    assert "Take em:n_components=2" in compared.output


def test_a_plan_says_what_is_done_what_it_takes_and_what_nobody_knows(finished_run, embench):
    (store.RESULTS / "known").parent.mkdir()
    (store.RESULTS / "known").symlink_to(finished_run)
    more = ["--model", "em,sklearn-em,spec-em", *FAST[2:]]

    result = embench("plan", *more, "--out", finished_run)

    assert result.exit_code == 0, result.output
    assert "2 trials to run (4 are done), 2 of unknown length" in result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("spec-em")]
    assert line.split()[-1] == "unknown"
    [again] = embench("plan", *FAST, "--out", "new").output.splitlines()[-1:]
    assert again.startswith("4 trials to run, about ")


def test_a_plan_lists_every_trial_in_the_order_of_the_run(embench):
    result = embench("plan", *FAST, "--trials", "--order-seed", "5", "--out", "run")
    ran = embench("run", *FAST, "--order-seed", "5", "--isolation", "none", "--no-remeasure",
                  "--out", "run")  # fmt: skip

    assert ran.exit_code == 0, ran.output
    listed = [line.split()[0] for line in result.output.splitlines() if "iris" in line]
    records = store.read(Path("run"))
    assert [name[:30] for name in listed] == [record.trial.id[:30] for record in records]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory-limit", "much"], "--memory-limit: expected a size like 2GiB"),
        (["--memory-limit", "0"], "--memory-limit: expected a size like 2GiB"),
        (["--executor", "dask"], "--scheduler tcp://"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler is for --executor dask"),
        (["--isolation", "none", "--workers", "2"], "--isolation none runs trials here"),
    ],
)
def test_ways_of_running_that_make_no_sense_are_one_line(embench, options, words):
    result = embench("run", *FAST, *options)

    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_memory_limit_stops_a_trial_and_not_the_run(embench):
    result = embench("run", "--model", "bad_models:Hungry,em", *FAST[2:], "--memory-limit", "1GiB",
                     "--out", "run")  # fmt: skip

    assert result.exit_code == 0, result.output
    statuses = {r.trial.model.name: r.status for r in store.read(Path("run"))}
    assert statuses == {"bad_models:Hungry": "out-of-memory", "em": "ok"}
