"""Densities p(Y|X), a Gaussian mixture of the targets for each sample; and two baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from embench.models.em import GaussianMixture
from embench.types import ConditionalMixture, FloatArray

ROWS = 4096
"""Samples that are looked at together: bounds the memory that their covariances take."""

CLIMB = 1000
"""Steps towards a mode at most. They take a share of what is left: few where modes lie apart."""

ARRIVED = 1e-10
"""A climb ends with a step shorter than this many standard deviations of the whole mixture."""


class ConditionalDensity(MultiOutputMixin, RegressorMixin, BaseEstimator, ABC):
    """Likelihoods, predictions and draws: all that follows from a mixture for each sample.

    A scikit-learn regressor whose ``score`` is the mean log-density of the targets, not R^2. A
    model says what the mixtures are in `_mixtures`, and calls `_validated` when it is fitted.
    Where Y has one dimension, so have predictions; draws have none for the targets.
    """

    @abstractmethod
    def _mixtures(self, X: FloatArray) -> ConditionalMixture:
        """One mixture for each row of a validated X in float64."""

    def conditional_mixture(self, X: FloatArray) -> ConditionalMixture:
        """The Gaussian mixture p(y|x) for each x.

        Args:
            X: Shape (n_samples, n_features) [u of X].

        Returns:
            Weights (n_samples, n_components), means (n_samples, n_components, n_targets) [u of Y]
            and full covariances (n_samples, n_components, n_targets, n_targets) [u of Y, squared].
        """
        return self._mixtures(self._seen(X))

    def score_samples(self, X: FloatArray, Y: FloatArray) -> FloatArray:
        """Log-density log p(y|x) of the targets of each sample, (n_samples,) [nat].

        Args:
            X: Shape (n_samples, n_features).
            Y: Shape (n_samples, n_targets), or (n_samples,) for one target; scaling what the model
                was fitted to and Y by c shifts the result by -n_targets * log(c).

        Raises:
            ValueError: The shapes of X and Y are not those of the fit, or one holds NaN.
        """
        X = self._seen(X)
        Y = check_array(Y, dtype=np.float64, ensure_2d=False, input_name="Y")
        wanted = (len(X), self.n_targets_)
        if Y.reshape(len(Y), -1).shape != wanted:
            raise ValueError(
                f"expected Y of shape (n_samples, n_targets) = {wanted}, as X and the fit have "
                f"them, got shape {Y.shape}"
            )
        Y = Y.reshape(wanted)
        parts = [
            logsumexp(_log_joint(self._mixtures(X[rows]), Y[rows, None])[:, 0], axis=-1)
            for rows in _blocks(len(Y))
        ]
        return np.concatenate(parts)

    def score(self, X: FloatArray, Y: FloatArray) -> float:
        """Mean log-density of the targets per sample [nat]; see `score_samples`."""
        return float(self.score_samples(X, Y).mean())

    def predict(self, X: FloatArray, kind: Literal["mean", "mode"] = "mean") -> FloatArray:
        """One value of the targets for each x.

        Args:
            X: Shape (n_samples, n_features).
            kind: "mean", the expectation of p(y|x), or "mode", where p(y|x) is highest: found by
                climbing from the mean of every component. Two modes of components that overlap
                may lie beside one that no climb leads to.

        Returns:
            Shape (n_samples, n_targets), or (n_samples,) where Y had one dimension [u of Y].

        Source:
            The climb: Carreira-Perpinan (2000), Mode-finding for mixtures of Gaussian
            distributions, eq. 7.
        """
        if kind not in _POINTS:
            raise ValueError(f"expected kind to be one of {', '.join(_POINTS)}, got {kind!r}")
        X = self._seen(X)
        parts = [_POINTS[kind](self._mixtures(X[rows])) for rows in _blocks(len(X))]
        return self._as_given(np.concatenate(parts))

    def sample(self, X: FloatArray, n_samples: int = 1) -> FloatArray:
        """Draw targets for each x, the same ones at every call if ``random_state`` is a number.

        Args:
            X: Shape (n, n_features).
            n_samples: How many draws for each x.

        Returns:
            Shape (n, n_samples, n_targets), or (n, n_samples) where Y had one dimension [u of Y].
        """
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"expected an integer n_samples >= 1, got {n_samples!r}")
        X, rng = self._seen(X), check_random_state(getattr(self, "random_state", None))
        parts = [_drawn(self._mixtures(X[rows]), n_samples, rng) for rows in _blocks(len(X))]
        return self._as_given(np.concatenate(parts))

    def _seen(self, X: FloatArray) -> FloatArray:
        """X as the fitted model takes it, float64."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _as_given(self, Y: FloatArray) -> FloatArray:
        """Without the dimension of the targets where the Y of the fit had none."""
        return Y[..., 0] if self._has_flat_targets else Y

    def _validated(
        self, X: FloatArray, Y: FloatArray, dtype: Any = np.float64
    ) -> tuple[FloatArray, FloatArray]:
        """X and Y of a fit as finite arrays, Y (n_samples, n_targets), after a look at parameters.

        Raises:
            ValueError: They hold NaN, or not as many rows as each other or as components; Y has
                not one or two dimensions, or a target that is the same for all.
        """
        self._validate_params()
        X, Y = validate_data(
            self, X, Y, dtype=dtype, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        Y = Y.astype(X.dtype)
        self._has_flat_targets: bool = Y.ndim == 1
        Y = Y.reshape(len(Y), -1)
        self.n_targets_: int = Y.shape[1]
        n_components = self.get_params().get("n_components", 1)
        if len(X) < n_components:
            raise ValueError(
                f"expected at least as many samples as components, got X of shape {X.shape} and "
                f"n_components={n_components}"
            )
        if (same := np.ptp(Y, axis=0) == 0).any():
            raise ValueError(
                f"expected targets that vary, but target {same.argmax()} is {Y[0, same.argmax()]:g}"
                f" in all {len(Y)} samples: a constant has no density"
            )
        return X, Y

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # its score is no R^2
        return tags


class LinearGaussian(ConditionalDensity):
    """Linear regression of all targets with one full covariance of the residuals: the baseline.

    p(y|x) = N(y; A x + b, S), where A and b are least squares and S is the residuals' mean outer
    product: the maximum of the likelihood. Leaves out whatever bends, spreads or branches with x.

    Args:
        reg_covar: Added to the diagonal of S [u of Y, squared].

    Attributes: ``coef_`` A (n_targets, n_features), ``intercept_`` b (n_targets,),
    ``covariance_`` S (n_targets, n_targets).

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, section 3.1.5; its S is spherical.

    Example:
        >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> model = LinearGaussian().fit(X, 2 * X[:, 0] + [0.1, -0.1, -0.1, 0.1])
        >>> model.coef_.round(6).tolist(), model.covariance_.round(6).tolist()
        ([[2.0]], [[0.010001]])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "reg_covar": [Interval(Real, 0, None, closed="left")]
    }

    def __init__(self, *, reg_covar: float = 1e-6) -> None:
        self.reg_covar = reg_covar

    def fit(self, X: FloatArray, Y: FloatArray) -> Self:
        """Fit to X (n_samples, n_features) and Y (n_samples, n_targets) or (n_samples,).

        Raises:
            ValueError: As all of these models, and if S is singular where ``reg_covar`` is 0.
        """
        X, Y = self._validated(X, Y)
        X_mean, Y_mean = X.mean(axis=0), Y.mean(axis=0)
        self.coef_ = np.linalg.lstsq(X - X_mean, Y - Y_mean, rcond=None)[0].T
        self.intercept_ = Y_mean - self.coef_ @ X_mean
        residuals = Y - X @ self.coef_.T - self.intercept_
        covariance = residuals.T @ residuals / len(Y) + self.reg_covar * np.eye(Y.shape[1])
        try:
            np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the covariance of the residuals is singular: X of shape {X.shape} explains Y "
                "without a rest; increase reg_covar"
            ) from None
        self.covariance_ = covariance
        return self

    def _mixtures(self, X: FloatArray) -> ConditionalMixture:
        means = X @ self.coef_.T + self.intercept_
        shape = (len(X), 1, *self.covariance_.shape)
        return ConditionalMixture(
            np.ones((len(X), 1)), means[:, None], np.broadcast_to(self.covariance_, shape)
        )


class JointMixture(ConditionalDensity):
    """A Gaussian mixture of X and Y together by ``em``, conditioned on X in closed form.

    p(y|x) = sum_k w_k(x) N(y; m_k + B_k (x - n_k), S_k - B_k C_k'), where component k of the joint
    mixture has means n_k of x and m_k of y, covariances R_k of x, S_k of y and C_k between (y by
    x), B_k = C_k R_k^-1, and w_k(x) is proportional to its weight times N(x; n_k, R_k).

    It maximises the likelihood of X and Y, not that of Y given X: components go where x is dense.
    The covariance family is that of the joint mixture.

    Args:
        n_components: Number of components.

    The others are those of ``em``.

    Attributes: ``joint_``, the fitted mixture of [X, Y]; ``n_iter_`` and ``converged_``.

    Source:
        Ghahramani and Jordan (1994), Supervised learning from incomplete data via an EM approach,
        section 4.

    Example:
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> model = JointMixture(n_components=2, random_state=0).fit(X, np.abs(X[:, 0]))
        >>> model.predict(np.array([[-0.5], [0.5]])).round(1).tolist()
        [0.5, 0.5]
    """

    version: ClassVar[str | Callable[..., str]] = GaussianMixture.version

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        name: GaussianMixture._parameter_constraints[name]
        for name in (
            "n_components",
            "covariance_type",
            "tol",
            "reg_covar",
            "max_iter",
            "n_init",
            "init_params",
            "random_state",
            "device",
            "dtype",
        )
    }

    def __init__(
        self,
        n_components: int = 3,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        random_state: int | np.random.RandomState | None = None,
        device: Literal["cpu", "cuda", "auto"] = "cpu",
        dtype: Literal["auto", "float64", "float32"] = "auto",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.device = device
        self.dtype = dtype

    def fit(self, X: FloatArray, Y: FloatArray) -> Self:
        """Fit to X (n_samples, n_features) and Y (n_samples, n_targets) or (n_samples,)."""
        self.joint_, joined = self._unfitted(X, Y)
        self.joint_.fit(joined)
        self.n_iter_, self.converged_ = self.joint_.n_iter_, self.joint_.converged_
        return self

    def iter_fit(self, X: FloatArray, Y: FloatArray) -> Iterator[int]:
        """Fit step by step: yields 0 at the start, then the iterations of EM done."""
        self.joint_, joined = self._unfitted(X, Y)
        for n_iter in self.joint_.iter_fit(joined):
            self.n_iter_, self.converged_ = self.joint_.n_iter_, self.joint_.converged_
            yield n_iter

    def _unfitted(self, X: FloatArray, Y: FloatArray) -> tuple[GaussianMixture, FloatArray]:
        """The mixture to fit, and what to fit it to: [X, Y]."""
        X, Y = self._validated(X, Y, dtype=[np.float64, np.float32])
        return GaussianMixture(**self.get_params()), np.hstack([X, Y])

    def _mixtures(self, X: FloatArray) -> ConditionalMixture:
        joint, n_inputs = self.joint_.mixture_, X.shape[1]
        weights, means, covariances = [], [], []
        for weight, mean, covariance in zip(
            joint.weights, joint.means, joint.covariances, strict=True
        ):
            # [[L, 0], [M, N]]: L of x alone, M L^-1 regresses y on x, N N' is what remains.
            scale_tril = np.linalg.cholesky(covariance)
            L, M, N = (
                scale_tril[:n_inputs, :n_inputs],
                scale_tril[n_inputs:, :n_inputs],
                scale_tril[n_inputs:, n_inputs:],
            )
            white = np.linalg.solve(L, (X - mean[:n_inputs]).T)
            with np.errstate(divide="ignore"):
                log_peak = np.log(weight) - np.log(np.diag(L)).sum()
            weights.append(log_peak - 0.5 * np.square(white).sum(axis=0))
            means.append(mean[n_inputs:] + (M @ white).T)
            covariances.append(np.broadcast_to(N @ N.T, (len(X), *N.shape)))
        log_weights = np.stack(weights, axis=1)
        log_weights -= logsumexp(log_weights, axis=1, keepdims=True)
        return ConditionalMixture(
            np.exp(log_weights), np.stack(means, axis=1), np.stack(covariances, axis=1)
        )


def _blocks(n_samples: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, n_samples, ROWS)]


def _log_joint(mixture: ConditionalMixture, Y: FloatArray) -> FloatArray:
    """Log of weight times density [n, m, K] of m points Y [n, m, D] for each of n mixtures."""
    precisions_cholesky = _inverse_factors(mixture.covariances)
    residuals = Y[:, :, None] - mixture.means[:, None]
    white = np.einsum("nkij,nmkj->nmki", precisions_cholesky, residuals)
    log_det = np.log(np.diagonal(precisions_cholesky, axis1=-2, axis2=-1)).sum(axis=-1)
    with np.errstate(divide="ignore"):
        peaks = np.log(mixture.weights) + log_det
    peaks -= mixture.means.shape[-1] / 2 * np.log(2 * np.pi)
    return peaks[:, None] - np.square(white).sum(axis=-1) / 2


def _inverse_factors(covariances: FloatArray) -> FloatArray:
    """L^-1 for every covariance L L', shape (..., D, D)."""
    return np.linalg.inv(np.linalg.cholesky(covariances))


def _mean(mixture: ConditionalMixture) -> FloatArray:
    """Expectations (n_samples, n_targets)."""
    return np.einsum("nk,nkd->nd", mixture.weights, mixture.means)


def _mode(mixture: ConditionalMixture) -> FloatArray:
    """Where each density is highest, (n_samples, n_targets): the best of a climb from every mean.

    y <- (sum_k r_k P_k)^-1 sum_k r_k P_k mu_k, with responsibilities r at y and precisions P, is a
    step of EM for y: the density never falls.
    """
    factors = _inverse_factors(mixture.covariances)
    precisions = factors.swapaxes(-1, -2) @ factors
    pulls = np.einsum("nkij,nkj->nki", precisions, mixture.means)
    spread = np.sqrt(_variances(mixture))[:, None]
    Y, climbing = mixture.means.copy(), np.arange(len(mixture.means))
    for _ in range(CLIMB):
        here = ConditionalMixture(*(part[climbing] for part in vars(mixture).values()))
        log_joint = _log_joint(here, Y[climbing])
        resp = np.exp(log_joint - logsumexp(log_joint, axis=-1, keepdims=True))
        precision = np.einsum("nmk,nkij->nmij", resp, precisions[climbing])
        pull = np.einsum("nmk,nki->nmi", resp, pulls[climbing])
        higher = np.linalg.solve(precision, pull[..., None])[..., 0]
        moved = np.abs(higher - Y[climbing]) > ARRIVED * spread[climbing]
        Y[climbing] = higher
        climbing = climbing[moved.any(axis=(1, 2))]
        if not len(climbing):
            break
    heights = logsumexp(_log_joint(mixture, Y), axis=-1)
    return np.take_along_axis(Y, heights.argmax(axis=1)[:, None, None], axis=1)[:, 0]


def _variances(mixture: ConditionalMixture) -> FloatArray:
    """Of each target under each mixture, (n_samples, n_targets)."""
    own = np.diagonal(mixture.covariances, axis1=-2, axis2=-1)
    residuals = mixture.means - _mean(mixture)[:, None]
    return np.einsum("nk,nkd->nd", mixture.weights, own + residuals**2)


def _drawn(mixture: ConditionalMixture, n_samples: int, rng: np.random.RandomState) -> FloatArray:
    """Draws (n, n_samples, n_targets), of components and then of their normals."""
    n = len(mixture.weights)
    levels = rng.uniform(size=(n, n_samples, 1)) * mixture.weights.sum(axis=1)[:, None, None]
    chosen = (levels > mixture.weights.cumsum(axis=1)[:, None]).sum(axis=-1)
    chosen = np.minimum(chosen, mixture.weights.shape[1] - 1)
    rows = np.arange(n)[:, None]
    noise = rng.standard_normal((n, n_samples, mixture.means.shape[-1]))
    scale_tril = np.linalg.cholesky(mixture.covariances)[rows, chosen]
    return mixture.means[rows, chosen] + np.einsum("nmij,nmj->nmi", scale_tril, noise)


_POINTS: dict[str, Callable[[ConditionalMixture], FloatArray]] = {"mean": _mean, "mode": _mode}
