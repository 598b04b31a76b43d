"""``onedal-em``: the EM of Intel's oneDAL through daal4py, full and diagonal covariances."""

from __future__ import annotations

import os
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Integral, Interval, Real, StrOptions
from sklearn.utils.validation import validate_data

from embench.models import families
from embench.models.base import MixtureEstimator
from embench.models.spec import forward
from embench.types import FloatArray, Mixture

# Nothing is loaded before the first fit: thread pools do not survive the fork of a trial.
VERSION = f"daal4py {version('daal4py')}"

STORAGE = {"full": "full", "diag": "diagonal"}
PRECISION = {"float64": "double", "float32": "float"}


class OneDALEM(MixtureEstimator):
    """Intel oneDAL's EM through daal4py: full and diagonal covariances, CPU only.

    What differs from scikit-learn's EM. Nothing is added to the covariances: the library mends one
    only when its Cholesky factorisation fails. It ends when the *total* log-likelihood rises by no
    more than ``tol``, so ``tol=0`` may end before ``max_iter``, when rounding stops the rise. It
    does not say whether it converged: ``converged_`` means iterations left over. It cannot be
    watched, so there is no ``iter_fit``. It takes as many threads as OMP_NUM_THREADS says, or all.
    It has no density either: scores and labels are computed in NumPy, in float64.

    Args:
        n_components: Number of components.
        covariance_type: "full" or "diag"; the library has no other.
        tol: oneDAL's accuracyThreshold, on the total log-likelihood [nat]; its default.
        max_iter: Largest number of EM iterations, at least 1; oneDAL's default.
        weights_init, means_init, precisions_init: A start of your own, as in scikit-learn; what
            is not given comes from k-means, as there.
        random_state: Seed of the k-means start and of `sample`.
        dtype: "float64" or "float32": precision of the fit.

    Example:
        >>> X = np.array([[0.0, 2], [1, 4], [2, 0], [9, 2], [10, 4], [11, 0]])
        >>> em = OneDALEM(n_components=2, covariance_type="diag", random_state=0).fit(X)
        >>> sorted(em.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    version: ClassVar[str] = VERSION

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(STORAGE))],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "random_state": ["random_state"],
        "dtype": [StrOptions(set(PRECISION))],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["full", "diag"] = "full",
        tol: float = 1e-4,
        max_iter: int = 10,
        weights_init: FloatArray | None = None,
        means_init: FloatArray | None = None,
        precisions_init: FloatArray | None = None,
        random_state: int | np.random.RandomState | None = None,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.max_iter = max_iter
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.dtype = dtype

    @property
    def mixture_(self) -> Mixture:
        return families.mixture(self.weights_, self.means_, self.covariances_, self.covariance_type)

    def start_from(self, start: Mixture) -> Self:
        """Begin the next fit at ``start``; its covariances must be of this family."""
        return self.set_params(**families.start_params(start, self.covariance_type))

    def fit(self, X: FloatArray, y: None = None) -> Self:
        """Fit to X of shape (n_samples, n_features).

        Raises:
            ValueError: X is not finite numbers in two dimensions, or a parameter is out of range.
            RuntimeError: The library gave up, for instance on a covariance beyond mending.
        """
        self._validate_params()
        X = validate_data(self, X, dtype=np.dtype(self.dtype), order="C", ensure_min_samples=2)
        start = self._start(X)
        algorithm = _library().em_gmm(
            nComponents=self.n_components,
            fptype=PRECISION[self.dtype],
            maxIterations=self.max_iter,
            accuracyThreshold=self.tol,
            covarianceStorage=STORAGE[self.covariance_type],
        )
        weights, means, covariances = (
            np.ascontiguousarray(part, dtype=X.dtype)
            for part in (start.weights_, start.means_, start.covariances_)
        )
        # A table per component: a diagonal is one of a single row.
        found = algorithm.compute(X, weights[None], means, list(map(np.atleast_2d, covariances)))
        self.weights_, self.means_ = found.weights[0], found.means
        self.covariances_ = np.reshape(found.covariances, covariances.shape)
        self.n_iter_ = int(found.nIterations[0, 0])
        self.converged_ = self.n_iter_ < self.max_iter
        return self

    def _start(self, X: FloatArray) -> GaussianMixture:
        """scikit-learn's mixture at its start: k-means, or what was given."""
        own = self.get_params()
        start = GaussianMixture(**{name: own[name] for name in own if name not in ("dtype", "tol")})
        start._check_parameters(X, xp=np)
        families.initialise(start, X, check_random_state(self.random_state))
        return start

    def _log_joint(self, X: FloatArray) -> FloatArray:
        return forward(self.mixture_, X)

    def _n_parameters(self) -> int:
        n_components, n_features = self.means_.shape
        own = n_features * (n_features + 1) // 2 if self.covariance_type == "full" else n_features
        return n_components * (1 + n_features + own) - 1


@cache
def _library() -> ModuleType:
    """daal4py's extension module alone, told how many threads to use.

    ``import daal4py`` runs its patches of scikit-learn, which import what newer versions of
    scikit-learn no longer have, and fails; the extension needs none of them. Its thread pool is
    TBB's, which does not look at the variable that limits all others.

    Raises:
        ImportError: daal4py is installed, but not for this Python.
    """
    package = find_spec("daal4py")
    assert package is not None
    spec = PathFinder.find_spec("_daal4py", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        raise ImportError(f"{VERSION} has no extension module for this version of Python")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.daalinit(int(os.environ.get("OMP_NUM_THREADS", -1)))
    return module
