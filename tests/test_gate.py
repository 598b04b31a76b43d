"""The gate: quiet on noise, loud on regressions, never green on nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embench.comparing.gate import Verdict, gate
from embench.types import Record

from .synthetic_records import ENVIRONMENT, changed, failed, frame, make_records

BLOBS = "blobs:n_features=8,n_components=16"


def run(noise_seed: int = 0, **options) -> list[Record]:
    settings = {"datasets": [BLOBS], "tracks": ["default"], "models": ["em", "sklearn-em"]}
    return make_records(**{**settings, "curves": False, "noise_seed": noise_seed, **options})


def judged(old: list[Record], new: list[Record]) -> Verdict:
    return gate(frame(old), frame(new))


def only_em(records: list[Record], change) -> list[Record]:
    """The records with those of em changed; a change to None takes a record away."""
    found = [change(r) if str(r.trial.model) == "em" else r for r in records]
    return [record for record in found if record is not None]


def times(metric: str, factor: float):
    return lambda record: changed(record, **{metric: factor * record.metrics[metric]})


def plus(metric: str, amount: float):
    return lambda record: changed(record, **{metric: record.metrics[metric] + amount})


def test_a_run_against_itself_passes() -> None:
    verdict = judged(run(), run())

    assert verdict.exit_code == 0
    assert verdict.lines == ("passed: 14 comparisons on 2 cells: 0 regressions, 0 inconclusive",)


def test_noise_raises_no_alarm_and_a_true_slowdown_is_caught() -> None:
    """Two runs of 30 % noise per trial, five seeds, 50 times; then the same with em twice as slow.

    Under noise alone the log ratio of a cell has a standard error of 0.3 * sqrt(2 / 5) = 0.19:
    beyond log(1.3) now and then, but by a whole t interval almost never. With 10 % noise, as on
    a quiet machine, a factor of two stands 6 standard errors beyond the tolerance.
    """
    alarms, caught = 0, 0

    for trial in range(50):
        old = frame(run(2 * trial, noise=0.3))
        alarms += gate(old, frame(run(2 * trial + 1, noise=0.3))).exit_code in (1, 2)
        quiet = frame(run(2 * trial, noise=0.1))
        slow = only_em(run(2 * trial + 1, noise=0.1), times("fit_seconds", 2))
        caught += gate(quiet, frame(slow)).exit_code == 1

    assert alarms <= 2
    assert caught >= 47


def test_a_slowdown_is_a_cost_regression_told_with_all_its_numbers() -> None:
    old = run(noise=0)

    verdict = judged(old, only_em(old, times("fit_seconds", 2.5)))

    assert verdict.exit_code == 1
    assert verdict.lines[0] == (
        f"fit_seconds worse: em on {BLOBS} (default): 26.7 ms -> 66.7 ms, "
        "2.5 times [2.5, 2.5] over 5 seeds, allowed 1.30 times"
    )
    assert verdict.lines[-1].startswith("cost regression: 14 comparisons on 2 cells: 1 regression,")


def test_a_loss_of_likelihood_wins_over_a_loss_of_time() -> None:
    old = run()
    new = only_em(old, lambda r: times("fit_seconds", 3)(plus("nll", 0.2)(r)))

    verdict = judged(old, new)

    assert verdict.exit_code == 2
    assert verdict.lines[0].startswith(f"nll worse: em on {BLOBS} (default): ")
    assert "+0.20 nat [0.20, 0.20] over 5 seeds, allowed 0.0100 nat" in verdict.lines[0]
    assert verdict.lines[1].startswith("fit_seconds worse")


def test_lower_agreement_is_worse_and_higher_is_not() -> None:
    old = run()

    lower, higher = (judged(old, only_em(old, plus("ami", by))) for by in (-0.1, 0.1))

    assert (lower.exit_code, higher.exit_code) == (2, 0)


def test_getting_better_passes() -> None:
    old = run()

    verdict = judged(old, only_em(old, lambda r: times("fit_seconds", 0.2)(plus("nll", -1)(r))))

    assert verdict.exit_code == 0


def test_what_is_within_the_tolerance_passes() -> None:
    old = run()

    verdict = judged(old, only_em(old, lambda r: times("fit_seconds", 1.2)(plus("nll", 0.005)(r))))

    assert verdict.exit_code == 0


def test_half_a_millisecond_is_no_regression_however_large_the_ratio() -> None:
    old = [changed(r, fit_seconds=4e-5) for r in run()]

    verdict = judged(old, only_em(old, times("fit_seconds", 10)))

    assert verdict.exit_code == 0


def test_half_as_long_again_is_seen_even_where_fits_take_milliseconds() -> None:
    old = [changed(r, fit_seconds=3e-3) for r in run()]

    verdict = judged(old, only_em(old, times("fit_seconds", 1.5)))

    assert verdict.exit_code == 1


def test_two_files_of_one_name_are_two_datasets() -> None:
    def other(record: Record) -> Record:
        dataset = replace(record.trial.dataset, version="2")
        return replace(record, trial=replace(record.trial, dataset=dataset))

    both = [*run(), *map(other, run())]

    same = judged(both, both)
    worse = judged(both, [*run(), *map(plus("nll", 1), map(other, run()))])

    assert (same.exit_code, worse.exit_code) == (0, 2)


def test_one_pair_proves_nothing() -> None:
    old = run(n_seeds=1)

    slow = judged(old, only_em(old, times("fit_seconds", 50)))

    assert slow.exit_code == 3
    assert slow.lines[0].startswith("fit_seconds perhaps worse: em on")


def test_a_change_on_one_seed_of_five_is_inconclusive() -> None:
    old = run()

    verdict = judged(old, only_em(old, lambda r: plus("nll", 0.5)(r) if r.trial.seed == 1 else r))

    assert verdict.exit_code == 3


def test_a_cell_that_is_missing_now_fails() -> None:
    verdict = judged(run(), only_em(run(), lambda _: None))

    assert verdict.exit_code == 2
    assert verdict.lines[0] == (
        f"missing: em on {BLOBS} (default): 5 trials ok before, not measured now"
    )


def test_a_trial_that_failed_now_fails() -> None:
    new = only_em(run(), lambda r: failed(r) if r.trial.seed == 2 else r)

    verdict = judged(run(), new)

    assert verdict.exit_code == 2
    assert verdict.lines[0] == (
        f"failed: em on {BLOBS} (default): ok before, now 1 of 5 diverged: weights are not finite"
    )


def test_a_seed_missing_in_one_cell_fails_but_fewer_seeds_in_all_do_not() -> None:
    gap = judged(run(), only_em(run(), lambda r: None if r.trial.seed == 2 else r))
    fewer = judged(run(), run(n_seeds=3))

    assert gap.exit_code == 2
    assert "1 of 5 seeds not measured now" in gap.lines[0]
    assert fewer.exit_code == 0


@pytest.mark.parametrize(("metric", "code"), [("ami", 2), ("n_iter", 1)])
def test_a_metric_that_is_gone_fails_as_its_kind(metric, code) -> None:
    verdict = judged(run(), only_em(run(), lambda r: changed(r, **{metric: None})))

    assert verdict.exit_code == code
    assert verdict.lines[0].startswith(f"{metric} missing: em on")


def test_what_failed_before_may_fail_again_and_what_is_new_is_noted() -> None:
    old = only_em(run(), failed)

    still, now = judged(old, old), judged(old, run())

    assert (still.exit_code, now.exit_code) == (0, 0)
    assert now.lines[0] == f"note: new, without a baseline: em on {BLOBS} (default)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([], []),
        ([], run()),
        (run(), []),
        (run(), [failed(r) for r in run()]),
        (run(), run(datasets=["iris"])),
    ],
)
def test_nothing_in_common_is_never_green(old, new) -> None:
    verdict = judged(old, new)

    assert verdict.exit_code == 4
    assert verdict.lines[-1].startswith("nothing compared")


def test_another_machine_leaves_costs_out_and_still_judges_quality() -> None:
    elsewhere = [replace(r, environment={**ENVIRONMENT, "cpu": "Other 1"}) for r in run()]

    slow = judged(run(), [times("fit_seconds", 9)(r) for r in elsewhere])
    worse = judged(run(), [plus("nll", 1)(r) for r in elsewhere])
    longer = judged(run(), [times("n_iter", 3)(r) for r in elsewhere])

    assert (slow.exit_code, worse.exit_code, longer.exit_code) == (0, 2, 1)
    assert slow.lines[0] == (
        "note: time and memory left out on 2 cells: measured on Synthetic 9000, now on Other 1"
    )


def test_another_device_is_another_cell() -> None:
    new = only_em(run(), lambda r: replace(r, trial=replace(r.trial, device="cuda")))

    verdict = judged(run(), new)

    assert verdict.exit_code == 2
    assert verdict.lines[0].startswith("missing: em [cpu] on")


def test_other_data_under_the_same_name_are_not_compared() -> None:
    def bumped(record: Record) -> Record:
        dataset = replace(record.trial.dataset, version="2")
        return replace(plus("nll", 9)(record), trial=replace(record.trial, dataset=dataset))

    verdict = judged(run(), only_em(run(), bumped))

    assert verdict.exit_code == 3
    assert "the dataset's version changed" in verdict.lines[0]


def test_a_new_version_of_a_model_is_what_is_judged() -> None:
    def bumped(record: Record) -> Record:
        model = replace(record.trial.model, version="2")
        return replace(plus("nll", 1)(record), trial=replace(record.trial, model=model))

    assert judged(run(), only_em(run(), bumped)).exit_code == 2
