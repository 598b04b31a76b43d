"""``sklearn-em`` and ``sklearn-vb``: scikit-learn's mixtures as they are, made watchable.

``fit`` is scikit-learn's own, untouched; what is added lets the harness look on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Self

import numpy as np
import sklearn
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.mixture._base import BaseMixture
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from embench.models import families
from embench.types import FloatArray, Mixture

VERSION = f"scikit-learn {sklearn.__version__}"


class SklearnEM(GaussianMixture):
    """scikit-learn's GaussianMixture: classical EM in NumPy.

    Its ``lower_bound_`` is taken before the last M-step, and each fit ends with one more E-step,
    which is part of what it costs.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> sorted(SklearnEM(n_components=2, random_state=0).fit(X).means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    version: ClassVar[str] = VERSION

    @property
    def mixture_(self) -> Mixture:
        return families.mixture(self.weights_, self.means_, self.covariances_, self.covariance_type)

    def start_from(self, start: Mixture) -> Self:
        """Begin the next fit at ``start``; its covariances must be of this family."""
        return self.set_params(**families.start_params(start, self.covariance_type))

    def iter_fit(self, X: FloatArray) -> Iterator[int]:
        """``fit`` step by step: yields 0 at the start, then the iterations done."""
        return _iter_fit(self, X)


class SklearnVB(BayesianGaussianMixture):
    """scikit-learn's BayesianGaussianMixture: variational Bayes with a Dirichlet-process prior.

    As a density it is the mixture at the posterior means: ``score`` and ``score_samples`` give
    log-likelihoods under it, where scikit-learn gives an expectation that is no density.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> bool(SklearnVB(n_components=2, random_state=0).fit(X).weights_.sum().round(6) == 1)
        True
    """

    version: ClassVar[str] = VERSION

    @property
    def mixture_(self) -> Mixture:
        return families.mixture(self.weights_, self.means_, self.covariances_, self.covariance_type)

    def iter_fit(self, X: FloatArray) -> Iterator[int]:
        """``fit`` step by step: yields 0 at the start, then the iterations done."""
        return _iter_fit(self, X)

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-density of each sample under the mixture at the posterior means, (n_samples,)."""
        check_is_fitted(self)
        density = GaussianMixture(self.n_components, covariance_type=self.covariance_type)
        density.weights_, density.means_ = self.weights_, self.means_
        density.precisions_cholesky_ = self.precisions_cholesky_
        return density.score_samples(validate_data(self, X, reset=False))


def _iter_fit(model: BaseMixture, X: FloatArray) -> Iterator[int]:
    """scikit-learn's own loop, pulled from outside; the model holds its best at every yield."""
    model._validate_params()
    X = validate_data(model, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
    model._check_parameters(X, xp=np)
    random_state = check_random_state(model.random_state)
    resumed = model.warm_start and hasattr(model, "converged_")
    best_bound, best_n_iter, done = -np.inf, 0, 0
    for restart in range(1 if resumed else model.n_init):
        if not resumed:
            families.initialise(model, X, random_state)
        if restart == 0:
            best = model._get_parameters()
            model._set_parameters(best)
            yield 0
        bound = model.lower_bound_ if resumed else -np.inf
        n_iter = 0
        for n_iter in range(1, model.max_iter + 1):
            log_density, log_resp = model._e_step(X)
            model._m_step(X, log_resp)
            previous, bound = bound, model._compute_lower_bound(log_resp, log_density)
            current = model._get_parameters()
            model.converged_ = abs(bound - previous) < model.tol
            model._set_parameters(current if bound > best_bound else best)
            yield done + n_iter
            model._set_parameters(current)
            if model.converged_:
                break
        done += n_iter
        if n_iter and bound > best_bound:
            best_bound, best_n_iter, best = bound, n_iter, current
    model._set_parameters(best)
    model.lower_bound_, model.n_iter_ = best_bound, best_n_iter
