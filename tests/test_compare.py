"""Comparisons: laws of swapping, ordering and scaling; what is missing is said."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from embench import store
from embench.comparing.compare import Comparison, compare
from embench.comparing.frames import BEST, TRUTH
from embench.comparing.tables import recommendation, sentences
from embench.comparing.words import overall_sentence, payback_sentence
from embench.metrics import METRICS
from embench.types import InputError, Record, Spec

from .synthetic_records import (
    LOSS,
    SPEED,
    USUAL,
    changed,
    failed,
    frame,
    make_record,
    make_records,
)

MIRROR = {"better": "worse", "worse": "better", "same": "same", "inconclusive": "inconclusive"}


def one_table(n_seeds: int = 5, **options) -> list[Record]:
    return make_records(datasets=["iris"], tracks=["default"], n_seeds=n_seeds, **options)


def model(record: Record) -> str:
    return str(record.trial.model)


def verdicts(comparison: Comparison, metric: str) -> dict[str, str]:
    return {c.candidate: c.verdict for c in comparison.changes if c.metric == metric}


def test_known_speeds_and_losses_are_found() -> None:
    comparison = compare(frame(make_records()))

    for change in comparison.changes:
        if change.metric == "fit_seconds":
            # Noise of 0.05 per trial, over 5 pairs: five standard errors are 0.16.
            assert change.interval.estimate == pytest.approx(1 / SPEED[change.candidate], rel=0.2)
        if change.metric == "nll":
            assert change.interval.estimate == pytest.approx(LOSS[change.candidate], abs=1e-12)
    assert verdicts(comparison, "nll") == {
        "em": "same",
        "spec-em": "same",
        "em:covariance_type=diag": "worse",
    }
    assert verdicts(comparison, "ami")["em:covariance_type=diag"] == "worse"
    assert verdicts(comparison, "fit_seconds")["em"] == "better"


def test_swapping_baseline_and_candidate_mirrors_every_verdict() -> None:
    records = frame(make_records(noise=0.2))

    there = compare(records, baseline="sklearn-em").changes
    back = compare(records, baseline="em").changes

    mirrored = {(c.track, c.dataset, c.metric): c for c in back if c.candidate == "sklearn-em"}
    pairs = [(c, mirrored[c.track, c.dataset, c.metric]) for c in there if c.candidate == "em"]
    assert len(pairs) == 42
    for one, other in pairs:
        assert other.verdict == MIRROR[one.verdict]
        if METRICS[one.metric].kind == "cost":
            assert one.interval.estimate * other.interval.estimate == pytest.approx(1)
            assert one.interval.low * other.interval.high == pytest.approx(1)
        else:
            assert one.interval.low == pytest.approx(-other.interval.high)


def test_the_order_of_records_changes_nothing() -> None:
    records = make_records()
    records[3] = failed(records[3])
    shuffled = random.Random(0).sample(records, len(records))

    found = [compare(frame(order)) for order in (records, shuffled)]

    assert str(found[0]) == str(found[1])
    pd.testing.assert_frame_equal(found[0].to_frame(), found[1].to_frame())


def test_a_slower_clock_leaves_ratios_and_ranks() -> None:
    records = one_table()
    slow = [changed(r, fit_seconds=7 * r.metrics["fit_seconds"]) for r in records]

    found = [compare(frame(each)) for each in (records, slow)]

    for one, other in zip(found[0].changes, found[1].changes, strict=True):
        assert one.interval.estimate == pytest.approx(other.interval.estimate)
        assert one.verdict == other.verdict
    assert list(found[0].summary["model"]) == list(found[1].summary["model"])


def test_tracks_are_compared_each_by_itself() -> None:
    both, alone = frame(make_records()), frame(make_records())

    comparison = compare(both)

    assert {track for track, _ in comparison.tables()} == {"same-start", "default"}
    assert compare(alone, tracks=["default"]).tables() == [("default", name) for name in USUAL]


def test_a_certain_but_tiny_change_is_the_same_and_a_wild_one_is_inconclusive() -> None:
    old = one_table(models=["sklearn-em"], noise=0)
    tiny = [replace(changed(r, fit_seconds=1.05 * r.metrics["fit_seconds"])) for r in old]
    wild = [
        changed(r, fit_seconds=r.metrics["fit_seconds"] * (0.3 if r.trial.seed % 2 else 4))
        for r in old
    ]
    rename = lambda r, name: replace(r, trial=replace(r.trial, model=Spec(name)))  # noqa: E731

    comparison = compare(
        frame([*old, *(rename(r, "tiny") for r in tiny), *(rename(r, "wild") for r in wild)])
    )

    assert verdicts(comparison, "fit_seconds") == {"tiny": "same", "wild": "inconclusive"}


def test_one_seed_settles_nothing_and_says_so() -> None:
    comparison = compare(frame(one_table(n_seeds=1)))

    assert {change.verdict for change in comparison.changes} == {"inconclusive"}
    assert "more --seeds would tell" in str(comparison)


def test_models_rank_by_nll_and_ties_by_time() -> None:
    comparison = compare(frame(one_table()))

    assert list(comparison.summary["model"]) == [
        "em",
        "sklearn-em",
        "spec-em",
        "em:covariance_type=diag",
    ]


def test_failing_on_hard_seeds_does_not_improve_a_rank() -> None:
    records = one_table()
    # Seed 1 and 2 have the highest NLL, so the mean of the diag model over the rest is the lowest.
    hard = [r for r in records if model(r) == "em:covariance_type=diag" and r.trial.seed in (1, 2)]
    records = [failed(r) if r in hard else r for r in records]

    comparison = compare(frame(records))

    summary = comparison.summary.set_index("model")
    assert summary["nll"].idxmin() == "em:covariance_type=diag"
    assert summary["rank"]["em:covariance_type=diag"] == 4
    assert summary["ok"]["em:covariance_type=diag"] == 3
    assert "3 of 5" in str(comparison)


def test_the_recommended_model_is_the_cheaper_of_equals() -> None:
    comparison = compare(frame(one_table()))

    sentence = recommendation(comparison, "default", "iris")

    assert sentence.startswith("Take em: ")
    assert "fastest of the 3 within 0.01 nat" in sentence


def test_a_model_that_failed_is_not_recommended_while_another_did_not() -> None:
    records = one_table()
    records = [failed(r) if model(r) == "em" and r.trial.seed == 0 else r for r in records]

    comparison = compare(frame(records))

    assert recommendation(comparison, "default", "iris").startswith("Take sklearn-em: ")


def test_failures_are_listed_with_status_and_first_message() -> None:
    records = [
        failed(r, "timeout", f"seed {r.trial.seed}") if model(r) == "em" else r for r in one_table()
    ]

    comparison = compare(frame(records))

    [failure] = comparison.failures
    assert (failure.model, failure.status, failure.count) == ("em", "timeout", 5)
    assert failure.message == "seed 0"
    assert "5 trials timeout: seed 0" in str(comparison)


def test_what_finished_trials_said_is_noted() -> None:
    records = [
        replace(r, message="not converged") if model(r) == "em" and r.trial.seed > 1 else r
        for r in one_table()
    ]

    comparison = compare(frame(records))

    assert comparison.notes == (
        "em (default): 3 of 5 finished trials left a message, the first: not converged",
    )


def test_excess_is_over_the_truth_or_else_over_the_best_of_the_same_seed() -> None:
    records = make_records()

    rows = compare(frame(records)).records

    assert set(rows.loc[rows["dataset"] == "iris", "reference"]) == {BEST}
    assert set(rows.loc[rows["dataset"] != "iris", "reference"]) == {TRUTH}
    iris = rows[rows["dataset"] == "iris"]
    assert iris.groupby(["seed", "label"])["excess_nll"].mean().to_dict() == {
        (seed, name): pytest.approx(loss) for seed in range(5) for name, loss in LOSS.items()
    }


def test_the_last_record_of_a_trial_wins_and_a_note_says_so() -> None:
    old = one_table()
    again = changed(old[0], nll=0.0)

    comparison = compare([frame(old, "a"), frame([again], "b")])

    assert len(comparison.records) == len(old)
    assert comparison.records["nll"].min() == 0
    assert "1 trial measured more than once" in comparison.notes[0]


def test_several_devices_and_versions_become_part_of_the_label() -> None:
    old = one_table(models=["em", "sklearn-em"])
    gpu = [replace(r, trial=replace(r.trial, device="cuda", dtype="float32")) for r in old]
    newer = [
        replace(r, trial=replace(r.trial, model=replace(r.trial.model, version="2")))
        for r in old[:5]
    ]

    by_device = compare(frame([*old, *gpu]))
    by_version = compare(frame([*old, *newer]))

    assert set(by_device.summary["model"]) == {
        "em [cpu float64]",
        "em [cuda float32]",
        "sklearn-em [cpu float64]",
        "sklearn-em [cuda float32]",
    }
    assert {(change.candidate, change.baseline) for change in by_device.changes} == {
        ("em [cpu float64]", "sklearn-em [cpu float64]"),
        ("em [cuda float32]", "sklearn-em [cuda float32]"),
    }
    assert {"em (version )", "em (version 2)"} < set(by_version.summary["model"])


def test_a_model_is_compared_with_the_baseline_most_like_it() -> None:
    models = [f"{name}:n_components={k}" for name in ("em", "sklearn-em") for k in (2, 3)]
    records = one_table(models=models)

    usual = compare(frame(records))
    asked = compare(frame(records), baseline="sklearn-em:n_components=2")

    assert {(change.candidate, change.baseline) for change in usual.changes} == {
        ("em:n_components=2", "sklearn-em:n_components=2"),
        ("em:n_components=3", "sklearn-em:n_components=3"),
    }
    assert {change.baseline for change in asked.changes} == {"sklearn-em:n_components=2"}
    assert len({change.candidate for change in asked.changes}) == 3


def test_without_sklearn_em_the_first_name_is_the_baseline() -> None:
    records = one_table(models=["spec-em", "em"])

    found = [compare(frame(order)) for order in (records, records[::-1])]

    assert [{c.baseline for c in each.changes} for each in found] == [{"em"}, {"em"}]


def test_a_baseline_that_failed_is_replaced_and_a_note_says_so() -> None:
    records = [failed(r) if model(r) == "sklearn-em" else r for r in one_table()]

    usual, asked = compare(frame(records)), compare(frame(records), baseline="sklearn-em")

    assert {change.baseline for change in usual.changes} == {"em"}
    assert "sklearn-em did not finish" in usual.notes[0]
    assert asked.changes == ()
    assert "no finished trial of the baseline" in asked.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "sklern-em"}, "unknown baseline 'sklern-em'; did you mean 'sklearn-em'"),
        ({"metrics": ["fit_second"]}, "unknown metric 'fit_second'; did you mean 'fit_seconds'"),
        ({"tracks": ["defualt"]}, "unknown track 'defualt'; did you mean 'default'"),
    ],
)
def test_unknown_names_get_the_nearest_known(options, message) -> None:
    with pytest.raises(InputError, match=message):
        compare(frame(one_table()), **options)


@pytest.mark.parametrize("records", [[], [failed(r) for r in one_table()]])
def test_nothing_finished_is_a_sentence_and_no_crash(records) -> None:
    comparison = compare(frame(records))

    assert comparison.changes == ()
    assert comparison.to_frame().empty
    text = str(comparison) + comparison._repr_html_()
    assert "Nothing to compare" in text or "no trial finished" in text
    assert "nan" not in text


def test_folders_and_frames_read_the_same(tmp_path) -> None:
    records = one_table()
    with store.writing(tmp_path / "run") as writer:
        for record in records:
            writer.append(record)

    found = compare(tmp_path / "run")

    pd.testing.assert_frame_equal(found.to_frame(), compare(frame(records)).to_frame())


def test_chosen_metrics_alone_are_compared() -> None:
    comparison = compare(frame(one_table()), metrics=["ami", "excess_nll"])

    assert {change.metric for change in comparison.changes} == {"ami", "excess_nll"}
    assert "AMI worse" in str(comparison)


def test_a_cost_of_zero_is_compared_at_its_meters_resolution() -> None:
    records = [changed(r, peak_memory=0.0) for r in one_table()]

    comparison = compare(frame(records))

    assert set(verdicts(comparison, "peak_memory").values()) == {"same"}


def test_sentences_say_faster_slower_and_the_loss() -> None:
    comparison = compare(frame(one_table(noise=0)))

    found = sentences(comparison, "default", "iris")

    assert found == [
        "em is 3.0 times faster than sklearn-em [3.0, 3.0], same NLL",
        "spec-em is 2.0 times slower than sklearn-em [2.0, 2.0], same NLL",
        "em:covariance_type=diag is 6.0 times faster than sklearn-em [6.0, 6.0], "
        "held-out NLL worse by 0.20 nat [0.20, 0.20]",
    ]


def trained(frame, model, seconds):
    """The records as if a model had been trained before."""
    return frame.assign(training_seconds=np.where(frame["model"] == model, seconds, np.nan))


def test_a_training_has_paid_when_its_fits_have_saved_what_it_took() -> None:
    some = frame(make_records(models=["em", "sklearn-em"], tracks=["default"], noise=0.0))
    seconds = some.groupby("model")["fit_seconds"].mean()
    saved = seconds["sklearn-em"] - seconds["em"]

    [payback] = compare(trained(some, "em", 1000 * saved)).paybacks

    assert payback.n_fits in (1000, 1001)
    assert "em was trained for" in payback_sentence(payback)
    assert f"it has paid after {payback.n_fits:,} fits" in payback_sentence(payback)


def test_a_training_for_fits_that_save_nothing_never_pays() -> None:
    some = frame(make_records(models=["spec-em", "sklearn-em"], tracks=["default"]))

    comparison = compare(trained(some, "spec-em", 60.0))

    assert comparison.paybacks[0].n_fits is None
    assert "trained for 60.0 s and saves no time against sklearn-em" in str(comparison)
    assert compare(some).paybacks == ()


def test_the_overall_line_is_the_geometric_mean_over_datasets() -> None:
    comparison = compare(frame(make_records(noise=0, tracks=["default"])))

    found = {item.candidate: item for item in comparison.overall}

    assert found["em"].time_ratio.estimate == pytest.approx(1 / 3)
    assert found["em"].n_datasets == 3
    assert found["em"].verdicts == {"same": 3}
    assert found["em:covariance_type=diag"].verdicts == {"worse": 3}


@pytest.mark.parametrize(("n_datasets", "interval"), [(2, ""), (3, " [3.0, 3.0]")])
def test_two_datasets_give_no_interval_over_datasets(n_datasets, interval) -> None:
    records = frame(make_records(noise=0, tracks=["default"]))
    some = records[records["dataset"].isin(records["dataset"].unique()[:n_datasets])]

    lines = [overall_sentence(item) for item in compare(some).overall]

    assert any(f"over {n_datasets} datasets: 3.0 times faster{interval};" in line for line in lines)


def test_reading_imports_no_torch_and_no_sklearn() -> None:
    code = (
        "import embench.comparing.compare, embench.comparing.gate, embench.reporting.page, sys\n"
        "assert not {'torch', 'sklearn', 'matplotlib', 'seaborn'} & set(sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_a_dataset_seen_with_one_model_needs_no_baseline() -> None:
    records = [make_record("iris", "em", "default", seed) for seed in range(3)]

    comparison = compare(frame(records))

    assert comparison.changes == ()
    assert "the only model here" in str(comparison)


def test_splits_of_one_table_are_settled_less_easily_than_new_data() -> None:
    def split(record: Record) -> Record:
        sizes = {**record.sizes, "n_table": record.sizes["n_samples"] * 4 // 3}
        return replace(record, sizes=sizes)

    drawn = one_table(models=["em", "sklearn-em"], noise=0.1)

    wide, narrow = (compare(frame(r)).changes for r in (map(split, drawn), drawn))

    for one, other in zip(wide, narrow, strict=True):
        assert one.interval.estimate == other.interval.estimate
        assert one.interval.low <= other.interval.low
        assert one.interval.high >= other.interval.high
    [time_wide], [time_narrow] = (
        [item.interval for item in found if item.metric == "fit_seconds"]
        for found in (wide, narrow)
    )
    # sqrt(1/5 + 1/3) against sqrt(1/5), on the logarithm
    ratio = np.log(time_wide.high / time_wide.low) / np.log(time_narrow.high / time_narrow.low)
    assert ratio == pytest.approx(np.sqrt(8 / 3), rel=0.01)


def grouping(record: Record, **metrics: float) -> Record:
    """The record as a grouper would have left it."""
    ami = record.metrics["ami"]
    both = {"ami_max": ami, "ami_overlaps": ami, "predict_seconds": 0.1, **metrics}
    return changed(replace(record, curve=()), excess_nll=None, **both)


def test_groupers_are_ranked_by_their_groups_and_not_by_likelihoods_of_their_own() -> None:
    poor = {"em": -9.0, "sklearn-em": None, "spec-em": 5.0}
    records = [
        grouping(record, ami=0.1 * len(model(record)), nll=poor[model(record)])
        for record in one_table(models=list(poor))
    ]

    comparison = compare(frame(records))

    assert list(comparison.summary["model"]) == ["sklearn-em", "spec-em", "em"]
    assert "excess_nll" not in comparison.summary
    advice = recommendation(comparison, "default", "iris")
    assert advice.startswith("Take sklearn-em: AMI 1.00 in ")
    assert "the highest" in advice
    assert "em against sklearn-em: AMI worse by 0.80" in str(comparison)


def test_a_trained_grouper_pays_by_its_predictions_and_is_told_by_its_groups() -> None:
    saved = {"em": 1.0, "sklearn-em": 3.0}
    records = [
        grouping(record, predict_seconds=saved[model(record)])
        for record in one_table(models=list(saved))
    ]

    [payback] = compare(trained(frame(records), "em", 60.0)).paybacks

    assert payback.n_fits == 30
    assert "30 predictions; AMI same on 1" in payback_sentence(payback)


def test_ties_of_groupers_go_by_fit_and_prediction_together() -> None:
    slow = {"em": 3.0, "sklearn-em": 2.0}
    records = [
        grouping(record, ami=0.5, fit_seconds=1.0, predict_seconds=slow[model(record)])
        for record in one_table(models=list(slow))
    ]

    comparison = compare(frame(records))

    assert list(comparison.summary["model"]) == ["sklearn-em", "em"]
    assert "AMI 0.500 in 3.00 s" in recommendation(comparison, "default", "iris")
    assert "prediction 1.50 times slower" in str(comparison)


def test_densities_beside_groupers_keep_their_excess() -> None:
    densities = make_records(datasets=["iris"], tracks=["default"])
    groupers = [
        grouping(record)
        for record in make_records(
            datasets=["blobs:n_features=2,n_components=3"], tracks=["default"]
        )
    ]

    comparison = compare(frame([*densities, *groupers]))

    has_excess = comparison.summary["excess_nll"].notna()
    assert set(comparison.summary.loc[has_excess, "dataset"]) == {"iris"}
    assert set(comparison.records.loc[comparison.records["reference"] == "", "dataset"]) == {
        "blobs:n_features=2,n_components=3"
    }
