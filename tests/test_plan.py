"""Suites to trials, and every mistake said before anything is run."""

from __future__ import annotations

import numpy as np
import pytest

from embench.measuring.plan import plan
from embench.measuring.suite import customised, load_suite, suites
from embench.types import InputError, Spec

SUITE = """
tracks = ["same-start", "default"]
seeds = 2
[[datasets]]
name = "blobs"
n_features = [2, 3]
[[models]]
name = "em"
covariance_type = ["full", "diag"]
[[models]]
name = "sklearn-vb"
[[models]]
name = "spec-em"
tracks = ["same-start"]
"""


@pytest.fixture
def suite(tmp_path):
    def make(text=SUITE):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load_suite(path)

    return make


def test_lists_are_swept_and_tracks_are_kept(suite):
    trials = plan(suite()).trials

    asked = {(str(t.dataset), str(t.model), t.track, t.seed) for t in trials}
    assert len(asked) == len(trials) == 2 * 2 * (3 + 3)
    assert {str(t.model) for t in trials if t.track == "default"} == {
        "em:covariance_type=full",
        "em:covariance_type=diag",
        "sklearn-vb",
    }


def test_a_model_that_cannot_take_a_start_is_left_out_and_named(suite):
    planned = plan(suite())

    assert planned.left_out == (
        "sklearn-vb is left out of same-start: it cannot begin at a given mixture",
    )
    assert not any(t.model.name == "sklearn-vb" and t.track == "same-start" for t in planned.trials)


def test_the_common_start_is_none_for_a_constant_covariance(suite):
    models = "em:covariance_type=full,em:covariance_type=constant"

    planned = plan(customised(suite(), models=models, tracks=["same-start", "default"]))

    taken = {(t.model.params["covariance_type"], t.track) for t in planned.trials}
    assert taken == {("full", "same-start"), ("full", "default"), ("constant", "default")}
    assert len(planned.left_out) == 1


def test_an_alias_of_a_family_is_the_family_also_for_those_who_do_not_know_it(suite):
    planned = plan(customised(suite(), models="sklearn-em:covariance_type=isotropic"))

    assert {t.model.params["covariance_type"] for t in planned.trials} == {"spherical"}


SWEEP = """
tracks = ["same-start", "default"]
seeds = 3
[[datasets]]
name = "blobs"
n_features = [4, 2]
n_samples = [500, 50, 100]
[[datasets]]
name = "iris"
[[models]]
name = "em"
covariance_type = ["full", "diag", "tied"]
[[models]]
name = "sklearn-vb"
"""


def places(trials):
    """Where in the plan each seed, dataset and track is, by the first and last of its trials."""
    found = {}
    for place, trial in enumerate(trials):
        found.setdefault((trial.seed, str(trial.dataset), trial.track), []).append(place)
    return found


@pytest.mark.parametrize("order_seed", range(4))
def test_the_order_is_random_but_for_what_has_to_come_first(suite, order_seed):
    """Every trial once; seed by seed; models of a dataset together; in a family of datasets the
    smaller before the larger."""
    trials = plan(customised(suite(SWEEP), order_seed=order_seed)).trials

    assert len({trial.id for trial in trials}) == len(trials) == 3 * 7 * (3 + 4)
    assert {trial.id for trial in trials} == {trial.id for trial in plan(suite(SWEEP)).trials}
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)
    for found in places(trials).values():
        assert found == list(range(found[0], found[0] + len(found)))
    for seed in range(3):
        amounts = [
            t.dataset.params["n_features"] * t.dataset.params["n_samples"]
            for t in trials
            if t.seed == seed and t.dataset.name == "blobs"
        ]
        assert amounts == sorted(amounts)


def test_the_order_is_that_of_its_seed(suite):
    orders = [
        [trial.id for trial in plan(customised(suite(SWEEP), order_seed=seed)).trials]
        for seed in (0, 0, 1, 2)
    ]

    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


def test_every_model_has_its_turn_in_being_first_and_every_family(suite):
    seen = {"model": set(), "dataset": set()}
    for order_seed in range(12):
        trials = plan(customised(suite(SWEEP), order_seed=order_seed)).trials
        firsts = {trial.seed: trial for trial in reversed(trials)}
        seen["dataset"] |= {trial.dataset.name for trial in firsts.values()}
        for found in places(trials).values():
            if trials[found[0]].track == "default":
                seen["model"].add(str(trials[found[0]].model))

    assert len(seen["model"]) == 4
    assert seen["dataset"] == {"blobs", "iris"}


def test_data_do_not_depend_on_the_model(suite):
    trials = plan(suite()).trials

    by_data = {(str(t.dataset), t.seed) for t in trials if t.model.name == "em"}
    assert by_data == {(str(t.dataset), t.seed) for t in trials if t.model.name == "spec-em"}


@pytest.mark.parametrize("name", sorted(suites()))
def test_shipped_suites_can_be_planned(name, tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n" * 50)
    data = {"datasets": f"{tmp_path}/x.csv"} if name == "own-data" else {}

    assert plan(customised(load_suite(name), **data, seeds=1)).trials


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"blobs"', '"blobz"', "unknown dataset 'blobz'; did you mean 'blobs'"),
        ('"em"', '"emm"', "unknown model 'emm'; did you mean 'em'"),
        ("n_features", "n_featurs", "did you mean 'n_features'"),
        ("covariance_type", "covariance_typ", "did you mean 'covariance_type'"),
        ('"full"', '"fulll"', "'covariance_type' parameter"),
        ("seeds = 2", "seeds = 0", "seeds: Input should be greater than 0, got 0"),
        ("seeds = 2", "sedes = 2", "unknown key of a suite 'sedes'; did you mean 'seeds'"),
        ('"default"', '"defualt"', "got 'defualt'"),
        ("seeds = 2", "seeds = ", "not TOML"),
        ("seeds = 2", "time_limit = inf", "time_limit: Input should be a finite number"),
        ("[2, 3]", "[]", "n_features: expected at least one value, got []"),
        ("[2, 3]", "[0]", "n_features: Input should be greater than 0, got 0"),
        ('name = "spec-em"', "max_iter = 3", "name: Field required"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_that_says_what_came(suite, old, new, words):
    with pytest.raises(InputError) as caught:
        plan(suite(SUITE.replace(old, new)))

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_suite_is_compared_with_those_that_exist():
    with pytest.raises(InputError, match="did you mean 'quick'"):
        load_suite("quik")


def test_a_suite_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the suite .*nowhere\.toml"):
        load_suite(tmp_path / "nowhere.toml")


def test_more_components_than_samples_is_said_before_anything_runs(suite):
    with pytest.raises(InputError, match="got 10 samples and 20 components"):
        plan(customised(suite(), datasets="blobs:n_samples=10", n_components=[20]))


def test_data_without_a_component_count_need_one(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n" * 50)
    mine = customised(load_suite("quick"), datasets=[Spec(str(tmp_path / "x.csv"))])

    with pytest.raises(InputError, match="--n-components"):
        plan(mine)


def test_n_components_replaces_what_models_and_datasets_say(suite):
    trials = plan(customised(suite(), n_components=[4, 5])).trials

    assert {t.model.params["n_components"] for t in trials} == {4, 5}


def test_a_missing_gpu_is_said_before_anything_runs(suite, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(InputError, match="no CUDA device"):
        plan(customised(suite(), device="cuda"))


def test_the_gpu_is_for_models_that_can_use_it(suite, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    trials = plan(customised(suite(), device="auto")).trials

    assert {(t.model.name, t.device) for t in trials} == {
        ("em", "cuda"),
        ("sklearn-vb", "cpu"),
        ("spec-em", "cpu"),
    }


def test_a_models_own_device_and_dtype_are_those_of_its_trials(suite, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    trials = plan(customised(suite(), models="em:device=cuda,em:dtype=float32,em")).trials

    assert {(str(t.model), t.device, t.dtype) for t in trials} == {
        ("em:device=cuda", "cuda", "float64"),
        ("em:dtype=float32", "cpu", "float32"),
        ("em", "cpu", "float64"),
    }


def test_the_same_model_twice_is_one_candidate(suite):
    once, twice = (plan(customised(suite(), models=text)).trials for text in ("em", "em,em"))

    assert len(once) == len(twice)


def test_a_parameter_that_no_record_could_tell_is_refused(suite):
    with pytest.raises(InputError, match="random_state: expected a number, a text"):
        plan(customised(suite(), models=[Spec("em", {"random_state": np.random.RandomState(0)})]))


def test_a_track_that_no_model_takes_is_told_which_they_take(suite):
    text = SUITE.replace('tracks = ["same-start", "default"]', 'tracks = ["budget"]')
    only = text[: text.index("[[models]]")] + text[text.rindex("[[models]]") :]

    with pytest.raises(InputError, match=r"nothing to run in budget: .*tracks \(same-start\)"):
        plan(suite(only))
