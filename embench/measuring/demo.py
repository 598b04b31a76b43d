"""A fit to look at: the mixture every few iterations, with the judge's word on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.base import clone

from embench import gaussian, registry
from embench.measuring.prepare import prepared
from embench.measuring.trial import watched
from embench.models.steps import last
from embench.types import (
    COVARIANCE_ALIASES,
    Dataset,
    FloatArray,
    InputError,
    IterativeModel,
    Mixture,
    MixtureModel,
    Model,
    Spec,
    StartableModel,
    Trial,
)

UNIT_SPHERES: Mapping[str, Any] = {"covariance_type": "spherical", "conditioning": 1.0}

TRUE_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "tied_spherical": UNIT_SPHERES,
    "constant": UNIT_SPHERES,
}
"""What mock data are to be for a family to be right about them, where its name does not say so."""


@dataclass(frozen=True)
class Moment:
    """A fit on its way: iterations and seconds so far, mean NLL of samples [nat], mixture."""

    n_iter: int
    seconds: float
    nll: float
    mixture: Mixture

    def __str__(self) -> str:
        under_way = f"  iteration {self.n_iter:<5}  {self.seconds:.2f} s" if self.seconds else ""
        return f"NLL {self.nll:.4f} nat{under_way}"


def mock_data(
    family: str, *, n_samples: int, n_features: int, n_components: int, radius: float, seed: int
) -> Dataset:
    """Scattered Gaussians with covariances of a family.

    Raises:
        InputError: There is no such family, or there are fewer samples than components.

    >>> mock_data("diag", n_samples=9, n_features=1, n_components=2, radius=8, seed=0).n_components
    2
    """
    if n_samples < n_components:
        raise InputError(
            f"expected at least as many samples as components, got {n_samples} samples and "
            f"{n_components} components"
        )
    family = COVARIANCE_ALIASES.get(family, family)
    return registry.make_dataset(
        "scattered",
        seed=seed,
        n_samples=n_samples,
        n_features=n_features,
        n_components=n_components,
        radius=radius,
        **TRUE_FAMILIES.get(family, {"covariance_type": family}),
    )


def gradient_descent(
    data: Dataset, family: str, every: int, *, seed: int, **params: Any
) -> Iterator[Moment]:
    """`gd` on its way, see `moments`; a first call, which loads libraries, is not on the clock."""
    model = registry.make_model(
        "gd",
        n_components=data.n_components,
        covariance_type=family,
        random_state=seed,
        **params,
    )
    _warm_up(model, data.X_train)
    return moments(model, data.X_train, every)


def _warm_up(model: Model, X: FloatArray) -> None:
    """A first iteration, which loads what the others use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last(moments(clone(model).set_params(max_iter=1), X))


def beside(data: Dataset, family: str, seed: int) -> dict[str, Moment]:
    """Where EM ends, and the truth."""
    assert data.truth is not None
    params = {"n_components": data.n_components, "covariance_type": family, "random_state": seed}
    em = registry.make_model("em", tol=1e-6, max_iter=1000, **params)
    truth = Moment(0, 0.0, -gaussian.log_likelihood(data.truth, data.X_train), data.truth)
    return {"EM": last(moments(em, data.X_train)), "truth": truth}


def side_by_side(
    models: Sequence[Spec], dataset: Spec, iterations: Sequence[int], seed: int
) -> tuple[Dataset, dict[str, list[Moment]]]:
    """A dataset, and models on their way from one start at the iterations asked for.

    The NLL is that of held-out samples. A model that ends before the last iteration is shown at its
    end; it ends by its own rule only where its spec says ``tol``.

    Raises:
        InputError: A model has no start, no iterations or no mixture to show, the data are no
            samples of a density, or a name or a parameter is wrong.
    """
    try:
        return _side_by_side(models, dataset, iterations, seed)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from error


def _side_by_side(
    models: Sequence[Spec], dataset: Spec, iterations: Sequence[int], seed: int
) -> tuple[Dataset, dict[str, list[Moment]]]:
    task = registry.make_dataset(dataset.name, seed=seed, **dataset.params).task
    if task != "density":
        raise InputError(f"{dataset}: only densities can be watched, and its task is {task}")
    fits = {}
    for spec in models:
        candidate = registry.make_model(spec.name, **spec.params)
        if not (isinstance(candidate, StartableModel) and isinstance(candidate, IterativeModel)):
            raise InputError(f"{spec.name} cannot be watched: it takes no start, or has no steps")
        trial = Trial(dataset=dataset, model=spec, track="same-start", seed=seed)
        data, (X, *_), model = prepared(trial)
        if data.n_components is None and "n_components" not in spec.params:
            raise InputError(f"{dataset} says no number of components: {spec.name}:n_components=3")
        wanted = {"max_iter": max(1, *iterations), "tol": 0.0}
        asked = wanted.keys() & model.get_params() - spec.params.keys()
        model.set_params(**{name: wanted[name] for name in asked})
        _warm_up(model, X)
        path = list(moments(model, X, judged_on=data.X_test))
        fits[str(spec)] = [at for at in path if at.n_iter in iterations or at is path[-1]]
    return data, fits


def moments(
    model: Model, X: FloatArray, every: int = 1, judged_on: FloatArray | None = None
) -> Iterator[Moment]:
    """The fit at its start, after every so many iterations, and at its end; the clock runs only
    while it is at work.

    Args:
        model: Not fitted; it can be watched, and is a mixture.
        X: Samples, shape (n_samples, n_features) [u].
        every: Iterations between moments.
        judged_on: Samples of the NLL; X by default.

    Raises:
        InputError: The model cannot be fitted to X.

    Example:
        >>> X = mock_data("full", n_samples=99, n_features=2, n_components=2, radius=8, seed=0)
        >>> spec = registry.make_model("spec-em", n_components=2, max_iter=3)
        >>> [moment.n_iter for moment in moments(spec, X.X_train, every=2)]
        [0, 2, 3]
    """
    try:
        for seconds, n_iter, fitted in watched(model, (X,), None):
            if n_iter % every == 0:
                yield _moment(n_iter, seconds, fitted, X if judged_on is None else judged_on)
        if n_iter % every:
            yield _moment(n_iter, seconds, fitted, X if judged_on is None else judged_on)
    except ValueError as error:
        raise InputError(str(error)) from error


def _moment(n_iter: int, seconds: float, fitted: Model, X: FloatArray) -> Moment:
    assert isinstance(fitted, MixtureModel)
    mixture = fitted.mixture_
    return Moment(n_iter, seconds, -gaussian.log_likelihood(mixture, X), mixture)
