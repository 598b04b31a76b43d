"""``em``: embench's own EM, a drop-in for scikit-learn's GaussianMixture on torch kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import validate_data
from torch import Tensor

from embench.models import engine, families
from embench.models.engine import FAMILIES, Parameters
from embench.types import FloatArray, IntArray, Mixture

NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase "
    "max_iter, tol, or check for degenerate data."
)


@dataclass(frozen=True)
class _Run:
    """One restart as far as it has come; ``lower_bounds`` [nat] grows with the restart."""

    parameters: Parameters
    lower_bounds: list[float]
    lower_bound: float
    n_iter: int = 0
    converged: bool = False


class GaussianMixtureEM(GaussianMixture):
    """Classical EM on embench's torch engine: float64 or float32, CPU or GPU.

    Maximises the mean log-likelihood 1/n sum_i log sum_k w_k N(x_i; mu_k, S_k) by alternating
    responsibilities and weighted moments. Constructor, attributes, starts and stopping rule are
    those of `sklearn.mixture.GaussianMixture`; from the same start both go the same way.

    Args:
        n_components: Number of components.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: Ends when the mean log-likelihood rises by less [nat]; 0 runs all iterations.
        reg_covar: Added to the diagonal of every covariance [u^2].
        max_iter: Largest number of EM iterations.
        n_init: Number of restarts; the best is kept.
        init_params: "kmeans", "k-means++", "random" or "random_from_data".
        weights_init, means_init, precisions_init: A start of your own, shapes as the fitted
            attributes; give all three.
        random_state: Seed of the start.
        warm_start: Continue from the last fit.
        verbose, verbose_interval: As in scikit-learn.
        device: "cpu", "cuda" or "auto" (cuda where there is one).
        dtype: "float64" or "float32": precision of the whole computation.

    Attributes: ``weights_`` (n_components,), ``means_`` (n_components, n_features) [u],
    ``covariances_`` and ``precisions_`` in the shape of their family [u^2, u^-2],
    ``converged_``, ``n_iter_``, ``lower_bound_`` (before the last M-step, as in scikit-learn).

    Source:
        Dempster, Laird and Rubin (1977); Bishop (2006), section 9.2.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> em = GaussianMixtureEM(n_components=2, random_state=0).fit(X)
        >>> sorted(em.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    version: ClassVar[str] = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **GaussianMixture._parameter_constraints,
        "device": [StrOptions({"cpu", "cuda", "auto"})],
        "dtype": [StrOptions({"float64", "float32"})],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Literal["kmeans", "k-means++", "random", "random_from_data"] = "kmeans",
        weights_init: FloatArray | None = None,
        means_init: FloatArray | None = None,
        precisions_init: FloatArray | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        device: Literal["cpu", "cuda", "auto"] = "cpu",
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        super().__init__(
            n_components=n_components,
            covariance_type=covariance_type,
            tol=tol,
            reg_covar=reg_covar,
            max_iter=max_iter,
            n_init=n_init,
            init_params=init_params,
            weights_init=weights_init,
            means_init=means_init,
            precisions_init=precisions_init,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
            verbose_interval=verbose_interval,
        )
        self.device = device
        self.dtype = dtype

    @property
    def precisions_(self) -> FloatArray:
        """Inverse covariances [u^-2] in the shape of their family."""
        factor = self.precisions_cholesky_
        if self.covariance_type in ("full", "tied"):
            return factor @ factor.swapaxes(-1, -2)
        return np.square(factor)

    @property
    def mixture_(self) -> Mixture:
        """The fitted mixture for the judge: float64, full matrices."""
        return families.mixture(self.weights_, self.means_, self.covariances_, self.covariance_type)

    def start_from(self, start: Mixture) -> Self:
        """Begin the next fit at ``start``; its covariances must be of this family."""
        return self.set_params(**families.start_params(start, self.covariance_type))

    def fit(self, X: FloatArray, y: None = None) -> Self:
        """Fit to X of shape (n_samples, n_features); see the class for what is set.

        Raises:
            ValueError: X is not finite numbers in two dimensions, has fewer samples than
                components, or a covariance became singular.
        """
        for _ in self.iter_fit(X):
            pass
        return self

    def fit_predict(self, X: FloatArray, y: None = None) -> IntArray:
        """Fit to X and return the most probable component of each sample, (n_samples,)."""
        return self.fit(X).predict(X)

    def iter_fit(self, X: FloatArray) -> Iterator[int]:
        """Fit step by step: yields 0 at the start, then the iterations done over all restarts.

        At every yield the model holds the best mixture so far and can be used or left.
        """
        X = self._validated(X)
        random_state = check_random_state(self.random_state)
        resumed = self.warm_start and hasattr(self, "converged_")
        best: _Run | None = None
        done = 0
        for restart in range(1 if resumed else self.n_init):
            self._print_verbose_msg_init_beg(restart)
            if not resumed:
                self._begin(X, random_state)
            for run in self._iterate(X, before=self.lower_bound_ if resumed else -np.inf):
                shown = best if best and best.lower_bound >= run.lower_bound else run
                self._expose(shown)
                if run.n_iter or not restart:
                    yield done + run.n_iter
            self._print_verbose_msg_init_end(run.lower_bound, run.converged)
            best, done = shown, done + run.n_iter
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=2)

    def _iterate(self, X: FloatArray, before: float) -> Iterator[_Run]:
        """EM from the model's present parameters: the start, then one run per iteration."""
        samples, family = self._tensor(X), FAMILIES[self.covariance_type]
        run = _Run(self._parameters(), [], before)
        yield run
        while run.n_iter < self.max_iter and not run.converged:
            mean, parameters = engine.em_step(samples, run.parameters, family, self.reg_covar)
            bound = float(mean)
            change = bound - run.lower_bound
            run.lower_bounds.append(bound)
            converged = abs(change) < self.tol
            run = _Run(parameters, run.lower_bounds, bound, run.n_iter + 1, converged)
            self._print_verbose_msg_iter_end(run.n_iter, change)
            yield run

    def _begin(self, X: FloatArray, random_state: np.random.RandomState) -> None:
        """The start as scikit-learn makes it; about the centre, so that nothing cancels far out.

        Not where single samples become components: scikit-learn's covariances then depend on
        where the origin is, and a drop-in begins at the same ones.
        """
        if self.init_params in ("k-means++", "random_from_data"):
            families.initialise(self, X, random_state)
            return
        centre = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        families.initialise(self, X - centre, random_state)
        if self.means_init is None:
            self.means_: FloatArray = self.means_ + centre

    def _validated(self, X: FloatArray) -> FloatArray:
        """X as a finite array of the model's dtype, after a look at every parameter."""
        self._validate_params()
        X = validate_data(self, X, dtype=np.dtype(self.dtype), ensure_min_samples=2)
        if len(X) < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = "
                f"{self.n_components}, n_samples = {len(X)}"
            )
        self._check_parameters(X, xp=np)
        return X

    def _parameters(self) -> Parameters:
        """The fitted attributes as tensors."""
        return Parameters(
            self._tensor(self.weights_),
            self._tensor(self.means_),
            self._tensor(self.covariances_),
            self._tensor(self.precisions_cholesky_),
        )

    def _expose(self, run: _Run) -> None:
        """Set the fitted attributes; on the CPU they share memory with the tensors."""
        self.weights_, self.means_, self.covariances_, self.precisions_cholesky_ = (
            tensor.cpu().numpy() for tensor in run.parameters
        )
        self.n_iter_, self.converged_ = run.n_iter, run.converged
        self.lower_bound_, self.lower_bounds_ = run.lower_bound, run.lower_bounds

    def _device(self) -> str:
        if self.device == "cpu" or torch.cuda.is_available():
            return "cuda" if self.device == "auto" else self.device
        if self.device == "auto":
            return "cpu"
        raise ValueError("device='cuda': torch finds no CUDA device; use 'cpu' or 'auto'")

    def _tensor(self, array: FloatArray) -> Tensor:
        # torch refuses the negative strides that a side of length 1 may keep, and dislikes
        # memory that it may not write: raveling mends the one, "W" copies where there is the other.
        flat = np.require(np.ravel(array), dtype=self.dtype, requirements="W")
        return torch.as_tensor(flat, device=self._device()).reshape(np.shape(array))

    def _estimate_weighted_log_prob(self, X: FloatArray, xp: Any = None) -> FloatArray:
        """Log-joint (n_samples, n_components): what scikit-learn's score and predict build on."""
        joint = engine.log_joint(
            self._tensor(X), self._parameters(), FAMILIES[self.covariance_type]
        )
        return joint.mT.cpu().numpy()
