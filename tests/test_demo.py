"""The demonstration: where it ends, what it draws, and what it says to a mistake."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.patches import Ellipse
from numpy.testing import assert_array_equal

from embench import gaussian, make_model
from embench.cli import main
from embench.measuring.demo import beside, gradient_descent, mock_data, moments, side_by_side
from embench.reporting import demo as drawing
from embench.types import Mixture, Spec

SMALL = ["--samples", "150", "--components", "3", "--iterations", "12", "--log-freq", "5"]


def run(*options):
    return CliRunner().invoke(main, ["demo", *SMALL, *options])


def test_it_shows_the_descent_and_em_and_draws_them(tmp_path):
    picture = tmp_path / "new" / "strip.png"

    result = run("--out", str(picture))

    assert result.exit_code == 0, result.output
    for words in ("iteration 0 ", "iteration 5 ", "iteration 10", "iteration 12", "EM", "truth"):
        assert words in result.output
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 300
    assert width > 1000


@pytest.mark.parametrize("dims", ["1", "2", "3"])
@pytest.mark.parametrize("family", ["full", "diag", "isotropic", "constant"])
def test_every_family_in_any_dimension_can_be_drawn(dims, family, tmp_path):
    result = run("--dims", dims, "--family", family, "--out", str(tmp_path / "strip.svg"))

    assert result.exit_code == 0, result.output
    assert (tmp_path / "strip.svg").stat().st_size > 10_000


def test_an_animation_has_the_moments_as_frames_and_then_rests(tmp_path):
    from PIL import Image

    result = run("--out", str(tmp_path / "moving.gif"))

    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "moving.gif") as moving:
        moving.seek(moving.n_frames - 1)
        # PIL joins frames that are alike: the end is a single one that is shown for two seconds.
        assert moving.n_frames == 4 or moving.n_frames == 4 + 2 * drawing.PER_SECOND
        assert moving.n_frames > 4 or moving.info["duration"] >= 2000


def test_without_a_picture_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = run("--no-visualize")

    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "strip.jpeg"], "ends in .png, .pdf, .svg, .gif, got strip.jpeg"),
        (["--family", "banana"], "banana"),
        (["--components", "500"], "150 samples and 500 components"),
        (["--iterations", "0"], "0"),
        (["--component-lr", "-1"], "-1"),
    ],
)
def test_a_mistake_is_a_sentence(options, words):
    result = run(*options)

    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_moments_are_the_judges_word_on_the_fit_that_is_watched():
    data = mock_data("full", n_samples=200, n_features=2, n_components=3, radius=8, seed=1)

    seen = list(gradient_descent(data, "full", 4, seed=0, max_iter=10, tol=0.0))

    assert [moment.n_iter for moment in seen] == [0, 4, 8, 10]
    fitted = make_model("gd", n_components=3, max_iter=10, tol=0.0, random_state=0)
    fitted.fit(data.X_train)
    assert seen[-1].nll == pytest.approx(-fitted.score(data.X_train), rel=1e-10)
    assert all(
        moment.nll == -gaussian.log_likelihood(moment.mixture, data.X_train) for moment in seen
    )
    assert [one.seconds for one in seen] == sorted(one.seconds for one in seen)


def test_em_beside_it_ends_no_worse_than_it_begins():
    data = mock_data("diag", n_samples=200, n_features=2, n_components=3, radius=8, seed=1)

    found = beside(data, "diag", seed=0)

    em = make_model("em", n_components=3, covariance_type="diag", random_state=0)
    first = next(moments(em, data.X_train))
    assert list(found) == ["EM", "truth"]
    assert found["EM"].nll < first.nll


def test_ellipses_are_the_components_deviations_and_fade_with_their_weights():
    data = mock_data("full", n_samples=100, n_features=2, n_components=2, radius=8, seed=1)
    weights = np.array([0.95, 0.05])
    mixture = Mixture(weights, data.truth.means, data.truth.covariances)

    figure = drawing.strip(data.X_train, [drawing.Picture("", mixture)])

    ellipses = [patch for patch in figure.axes[0].patches if isinstance(patch, Ellipse)]
    inner = ellipses[:: len(drawing.STANDARD_DEVIATIONS)]
    for ellipse, covariance in zip(inner, mixture.covariances, strict=True):
        expected = 2 * np.sqrt(np.linalg.eigvalsh(covariance))
        np.testing.assert_allclose([ellipse.width, ellipse.height], expected)
    assert inner[0].get_alpha() > inner[1].get_alpha()


def test_one_feature_is_drawn_with_its_density():
    data = mock_data("full", n_samples=100, n_features=1, n_components=3, radius=8, seed=1)

    figure = drawing.strip(data.X_train, [drawing.Picture("", data.truth)])

    x, density = figure.axes[0].lines[-1].get_data()
    expected = np.exp(gaussian.log_likelihoods(data.truth, np.asarray(x)[:, None]))
    np.testing.assert_allclose(density, expected, rtol=1e-9)


def test_a_strip_shows_the_first_and_the_last_and_begins_slowly():
    chosen = drawing._some(range(100), 6)

    assert len(chosen) == 6
    assert (chosen[0], chosen[-1]) == (0, 99)
    steps = [after - before for before, after in pairwise(chosen)]
    assert steps == sorted(steps)


# Models side by side


def watched(*arguments):
    return CliRunner().invoke(main, ["watch", *arguments])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_models_side_by_side_begin_at_one_start(tmp_path):
    picture = tmp_path / "new" / "watch.png"
    fits = side_by_side(
        [Spec("em"), Spec("over-relaxed-em")], Spec("blobs", {"n_samples": 200}), [0, 2, 4], 0
    )[1]

    result = watched("em", "over-relaxed-em", "--dataset", "blobs:n_samples=200",
                     "--iterations", "0,2,4", "--out", str(picture))  # fmt: skip

    assert result.exit_code == 0, result.output
    assert [at.n_iter for at in fits["em"]] == [0, 2, 4]
    assert_array_equal(fits["em"][0].mixture.means, fits["over-relaxed-em"][0].mixture.means)
    assert f"NLL {fits['em'][-1].nll:.4f} nat" in result.output
    height, width, _ = matplotlib.image.imread(picture).shape
    assert width > 1.2 * height > 600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["emm"], "did you mean 'em'?"),
        (["online-em", "--dataset", "nowhere"], "unknown dataset 'nowhere'"),
        (["joint-gmm"], "joint-gmm cannot be watched"),
        (["student-t-em"], "student-t-em cannot be watched"),
        (["em", "--iterations", "1,x"], "--iterations: expected integers >= 0 like 2,3,5"),
        (["em", "--out", "film.gif"], "expected a file that ends in .png, .pdf, .svg"),
    ],
)
def test_a_mistake_about_what_to_watch_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = watched(*arguments)

    assert result.exit_code == 2
    assert said in result.stderr
