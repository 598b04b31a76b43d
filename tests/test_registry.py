"""Names become objects when asked for, and a wrong name is met with the right one."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import embench
from embench import make_dataset, make_model, registry
from embench.types import InputError, ScoredModel, Spec

SHIPPED_MODELS = {"em", "sklearn-em", "sklearn-vb", "spec-em", "joint-gmm", "mdn"}
SHIPPED_DATASETS = {"blobs", "three-gaussians", "iris", "wine", "breast-cancer", "digits"}


def python(code):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def broken_model(monkeypatch):
    """A registered model whose package is not installed."""
    known = registry._entry_points("model")
    point = EntryPoint("broken", "no_such_package.models:Model", "embench.models")
    monkeypatch.setattr(registry, "_entry_points", lambda kind: {**known, "broken": point})


def test_everything_shipped_is_listed_with_a_line():
    assert set(embench.models()) >= SHIPPED_MODELS
    assert set(embench.datasets()) >= SHIPPED_DATASETS
    for line in [*embench.models().values(), *embench.datasets().values()]:
        assert line
        assert "\n" not in line


@pytest.mark.parametrize(
    "first",
    [
        "import embench.models.em",
        "from embench.models import engine",
        "import embench.datasets.synthetic",
        "import embench.models, embench.datasets",
    ],
)
def test_listings_are_still_there_after_an_import_of_their_package(first):
    printed = python(f"{first}; import embench; print(*embench.models(), *embench.datasets())")

    assert set(printed.split()) >= SHIPPED_MODELS | SHIPPED_DATASETS


def test_importing_embench_imports_neither_torch_nor_pandas():
    printed = python(
        "import sys, embench, embench.registry; "
        "print([name for name in ('torch', 'sklearn', 'pandas', 'scipy') if name in sys.modules])"
    )

    assert printed == "[]"


@pytest.mark.parametrize("name", sorted(SHIPPED_MODELS))
def test_a_model_is_made_with_its_parameters(name):
    model = make_model(name, n_components=4)

    assert model.get_params()["n_components"] == 4
    assert not hasattr(model, "weights_")


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (make_model, "sklern-em", "sklearn-em"),
        (make_model, "EM", "em"),
        (make_dataset, "blob", "blobs"),
        (make_dataset, "breast_cancer", "breast-cancer"),
    ],
)
def test_a_wrong_name_is_met_with_the_nearest_right_one(make, wrong, right):
    with pytest.raises(InputError, match="known: ") as refusal:
        make(wrong)

    assert repr(wrong) in str(refusal.value)
    if wrong != "EM":
        assert f"did you mean {right!r}?" in str(refusal.value)
    assert right in str(refusal.value)


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(InputError) as refusal:
        make_model("zzzzzzzz")

    assert "did you mean" not in str(refusal.value)
    assert all(name in str(refusal.value) for name in SHIPPED_MODELS)


@pytest.mark.parametrize(
    ("make", "name", "wrong", "right"),
    [
        (make_model, "em", "n_component", "n_components"),
        (make_model, "sklearn-em", "covariance", "covariance_type"),
        (make_model, "spec-em", "maxiter", "max_iter"),
        (make_dataset, "blobs", "n_sample", "n_samples"),
        (make_dataset, "iris", "standardise", "standardize"),
    ],
)
def test_a_wrong_parameter_is_met_with_the_nearest_right_one(make, name, wrong, right):
    with pytest.raises(InputError, match=f"did you mean '{right}'") as refusal:
        make(name, **{wrong: 1})

    assert name in str(refusal.value)
    assert repr(wrong) in str(refusal.value)


def test_a_model_can_be_named_by_module_and_class():
    model = make_model("embench.models.em:GaussianMixture", n_components=2)

    assert type(model) is type(make_model("em"))
    assert model.n_components == 2


@pytest.mark.parametrize(
    "name",
    [
        "embench.models.em:NoSuchClass",
        "embench.models.nothing:Model",
        "no_such_package:Model",
    ],
)
def test_a_path_that_cannot_be_imported_is_an_input_error(name):
    with pytest.raises(InputError, match="cannot be imported") as refusal:
        make_model(name)

    assert repr(name) in str(refusal.value)


@pytest.mark.usefixtures("broken_model")
def test_a_model_that_cannot_be_imported_is_listed_and_not_hidden():
    line = registry.models()["broken"]

    assert line.startswith("not available")
    assert "no_such_package" in line


@pytest.mark.usefixtures("broken_model")
def test_a_model_that_cannot_be_imported_is_an_input_error_when_asked_for():
    with pytest.raises(InputError, match="no_such_package"):
        make_model("broken")


@pytest.mark.parametrize("name", ["data.csv", "DATA.CSV", "a/b.npy", "x.npz", "/tmp/x.parquet"])
def test_a_dataset_can_be_named_by_the_path_of_a_file(name):
    assert registry.load("dataset", name).path == name


def test_a_path_of_another_kind_of_file_is_told_which_kinds_there_are():
    with pytest.raises(InputError, match=r"data\.txt: expected a file that ends in \.csv"):
        make_dataset("data.txt")


@pytest.mark.parametrize("name", sorted(SHIPPED_DATASETS))
def test_a_dataset_without_a_version_of_its_own_has_the_first(name):
    found = registry.version("dataset", Spec(name))

    assert found == getattr(registry.load("dataset", name), "version", "1")


def test_a_foreign_models_version_names_its_library():
    import sklearn

    assert sklearn.__version__ in registry.version("model", Spec("sklearn-em"))


def test_version_of_an_unknown_name_is_an_error():
    with pytest.raises(InputError, match="unknown model"):
        registry.version("model", Spec("nothing"))


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'make_modle'"):
        embench.make_modle  # noqa: B018


def test_the_public_face_is_all_there():
    for name in embench.__all__:
        assert getattr(embench, name) is not None
    assert set(dir(embench)) == set(embench.__all__)


def test_an_edited_model_is_another_version(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    texts = {"myoriginal": "pass", "mycopy": "pass", "myedited": "pass  # edited"}
    for name, body in texts.items():
        (tmp_path / f"{name}.py").write_text(
            "from sklearn.mixture import GaussianMixture\n\n\n"
            f"class Mine(GaussianMixture):\n    {body}\n"
        )

    version = {name: registry.version("model", Spec(f"{name}:Mine")) for name in texts}

    assert version["mycopy"] == version["myoriginal"] != version["myedited"]


def test_only_a_grouper_needs_no_score():
    assert not isinstance(make_model("pixel-kmeans"), ScoredModel)
    with pytest.raises(InputError, match=r"bad_models:Silent: .* an object without score"):
        make_model("bad_models:Silent")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = (", "cannot be imported: SyntaxError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("import numpy as Model", "expected a class, got a module"),
    ],
)
def test_a_module_of_the_users_that_is_no_model_is_one_line(tmp_path, monkeypatch, source, words):
    name = f"theirs_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(InputError, match=re.escape(words)):
        registry.load("model", f"{name}:Model")
