"""``spec-em``: the deterministic specification of a Gaussian mixture, in plain float64 NumPy.

Pure functions on a `Mixture` state what a mixture computes; the estimator below only strings them
together. Written to be read and checked, not to be fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from scipy.special import logsumexp
from sklearn.utils._param_validation import Integral, Interval
from sklearn.utils.validation import validate_data

from embench.models.base import MixtureEstimator
from embench.types import FloatArray, Mixture

JITTER = 1e-6
"""Added once to the diagonal of every updated covariance [u^2]; part of the specification."""

WEIGHT_TOLERANCE = 1e-9
"""Weights may miss a sum of 1 by this much: n_components times 1 / n_components does, too."""


class Gradients(NamedTuple):
    """Vector-Jacobian products of `forward`: weights (n_components,), means (n_components,
    n_features), covariances (n_components, n_features, n_features), x (n_features,)."""

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray
    x: FloatArray


def forward(mixture: Mixture, x: FloatArray) -> FloatArray:
    """Log of weight times density of each component.

    log w_k - 1/2 (d' S_k^-1 d + log det S_k + n_features log 2 pi), d = x - mu_k.

    Args:
        mixture: The mixture.
        x: One sample (n_features,) or several (n_samples, n_features) [u].

    Returns:
        Shape (n_components,) or (n_samples, n_components) [nat]; scaling all inputs by c shifts
        the result by -n_features * log(c).

    Raises:
        ValueError: The n_features of x and of the mixture differ.

    Example:
        >>> start = symmetric_start(n_components=2, n_features=1)
        >>> forward(start, np.zeros(1)).round(4)
        array([-1.6121, -1.6121])
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim not in (1, 2) or x.shape[-1] != mixture.n_features:
        raise ValueError(
            f"expected x of shape ({mixture.n_features},) or (n_samples, {mixture.n_features}), "
            f"got shape {x.shape}"
        )
    # (n_components, n_features, n_samples): all samples are right-hand sides of one solution.
    d = (np.atleast_2d(x) - mixture.means[:, None]).swapaxes(1, 2)
    quadratic = np.sum(d * np.linalg.solve(mixture.covariances, d), axis=1)
    _, log_det = np.linalg.slogdet(mixture.covariances)
    with np.errstate(divide="ignore"):  # the weight of a nearly empty component underflows
        log_weights = np.log(mixture.weights)
    constant = log_det + mixture.n_features * np.log(2 * np.pi)
    joint = log_weights - 0.5 * (quadratic.T + constant)
    return joint[0] if x.ndim == 1 else joint


def responsibilities(mixture: Mixture, x: FloatArray) -> FloatArray:
    """Softmax of `forward` over the components; same shape, sums to 1."""
    joint = forward(mixture, x)
    return np.exp(joint - logsumexp(joint, axis=-1, keepdims=True))


def log_likelihood(mixture: Mixture, x: FloatArray) -> FloatArray:
    """Log-density of one sample, shape (), or of several, shape (n_samples,) [nat]."""
    return logsumexp(forward(mixture, x), axis=-1)


def total_nll(mixture: Mixture, X: FloatArray) -> float:
    """Negative log-likelihood of a dataset: a sum over samples, not a mean [nat]."""
    return -float(np.sum(log_likelihood(mixture, X)))


def forward_vjp(mixture: Mixture, x: FloatArray, g: FloatArray) -> Gradients:
    """Vector-Jacobian products of `forward` at one sample, in closed form.

    dw_k = g_k / w_k; dmu_k = g_k S_k^-1 d; dx = - sum_k g_k S_k^-1 d;
    dS_k = g_k / 2 (S_k^-1 d d' S_k^-1 - S_k^-1). The entries of S_k count as independent.

    Args:
        mixture: The mixture.
        x: One sample, shape (n_features,) [u].
        g: Upstream gradient, shape (n_components,).
    """
    d = np.asarray(x, dtype=np.float64) - mixture.means
    precisions = np.linalg.inv(mixture.covariances)
    solved = np.einsum("kij,kj->ki", precisions, d)
    outer = solved[:, :, None] * solved[:, None, :]
    means = g[:, None] * solved
    return Gradients(
        weights=g / mixture.weights,
        means=means,
        covariances=0.5 * g[:, None, None] * (outer - precisions),
        x=-means.sum(axis=0),
    )


def em_step(mixture: Mixture, X: FloatArray) -> Mixture:
    """One EM step: responsibilities of the old mixture, then weights, means, covariances.

    Covariances are taken about the *new* means, divided by N_k, and get `JITTER` once. A component
    with not N_k > 0 keeps its parameters; the weights are then renormalised by their sum. No
    samples leave the mixture unchanged.

    Args:
        mixture: The current mixture.
        X: Samples, shape (n_samples, n_features) [u].
    """
    if len(X) == 0:
        return mixture
    resp = responsibilities(mixture, X)
    weights, means, covariances = (
        array.copy() for array in (mixture.weights, mixture.means, mixture.covariances)
    )
    for k, N_k in enumerate(resp.sum(axis=0)):
        if not N_k > 0:
            continue
        weights[k] = N_k / len(X)
        means[k] = resp[:, k] @ X / N_k
        d = X - means[k]
        covariances[k] = (resp[:, k, None] * d).T @ d / N_k + JITTER * np.eye(X.shape[1])
    return Mixture(weights / weights.sum(), means, covariances)


def symmetric_start(n_components: int, n_features: int) -> Mixture:
    """Equal weights, zero means, unit covariances: EM never separates these components."""
    return Mixture(
        np.full(n_components, 1.0 / n_components),
        np.zeros((n_components, n_features)),
        np.repeat(np.eye(n_features)[None], n_components, axis=0),
    )


def check(mixture: Mixture) -> None:
    """Refuse what is not a mixture.

    Raises:
        ValueError: Shapes disagree, weights are not positive or do not sum to 1, or a covariance
            is not symmetric positive definite; the message says which and what came.
    """
    K, D = mixture.means.shape
    if mixture.weights.shape != (K,) or mixture.covariances.shape != (K, D, D):
        raise ValueError(
            f"expected weights ({K},) and covariances ({K}, {D}, {D}) for means ({K}, {D}), got "
            f"{mixture.weights.shape} and {mixture.covariances.shape}"
        )
    if not np.all(mixture.weights > 0):
        raise ValueError(f"expected positive weights, got {mixture.weights.min():g}")
    if not abs(mixture.weights.sum() - 1) <= WEIGHT_TOLERANCE:
        raise ValueError(f"expected weights that sum to 1, got a sum of {mixture.weights.sum():g}")
    for k, covariance in enumerate(mixture.covariances):
        if not np.allclose(covariance, covariance.T):
            raise ValueError(f"expected symmetric covariances, got {covariance} for component {k}")
        if not np.linalg.eigvalsh(covariance)[0] > 0:
            raise ValueError(
                f"expected positive definite covariances, got smallest eigenvalue "
                f"{np.linalg.eigvalsh(covariance)[0]:g} for component {k}"
            )


class SpecificationEM(MixtureEstimator):
    """EM by the letter of a deterministic specification: fixed steps, nothing random.

    Plain float64 NumPy, full covariances, one jitter of 1e-6 per step; no convergence test, no
    restarts. Without a given start all components are equal and stay so.

    Args:
        n_components: Number of components.
        max_iter: Number of EM steps, all of which are done.
        weights_init: Start, shape (n_components,), sum 1.
        means_init: Start, shape (n_components, n_features) [u].
        covariances_init: Start, shape (n_components, n_features, n_features) [u^2]; covariances,
            not precisions, because the specification is stated in them.
        random_state: Seed of `sample`; the fit does not use it.

    Example:
        >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
        >>> start = {"means_init": [[0.0], [10.0]], "covariances_init": [[[1.0]], [[1.0]]]}
        >>> spec = SpecificationEM(n_components=2, weights_init=[0.5, 0.5], **start).fit(X)
        >>> spec.means_[:, 0].round(6).tolist()
        [0.5, 9.5]
    """

    version: ClassVar[str] = f"NumPy {np.__version__}"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "covariances_init": ["array-like", None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        max_iter: int = 100,
        weights_init: FloatArray | None = None,
        means_init: FloatArray | None = None,
        covariances_init: FloatArray | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.max_iter = max_iter
        self.weights_init = weights_init
        self.means_init = means_init
        self.covariances_init = covariances_init
        self.random_state = random_state

    @property
    def mixture_(self) -> Mixture:
        return Mixture(self.weights_, self.means_, self.covariances_)

    def start_from(self, start: Mixture) -> Self:
        """Begin the next fit at ``start``."""
        return self.set_params(
            weights_init=start.weights, means_init=start.means, covariances_init=start.covariances
        )

    def fit(self, X: FloatArray, y: None = None) -> Self:
        """Do ``max_iter`` EM steps on X of shape (n_samples, n_features).

        Raises:
            ValueError: X is not finite numbers in two dimensions, or the start is no mixture.
        """
        for _ in self.iter_fit(X):
            pass
        return self

    def iter_fit(self, X: FloatArray) -> Iterator[int]:
        """Fit step by step: yields 0 at the start, then the number of steps done."""
        self._validate_params()
        X = validate_data(self, X, dtype=np.float64)
        mixture = self._start(X.shape[1])
        check(mixture)
        self._expose(mixture, 0)
        yield 0
        for n_iter in range(1, self.max_iter + 1):
            mixture = em_step(mixture, X)
            self._expose(mixture, n_iter)
            yield n_iter

    def _start(self, n_features: int) -> Mixture:
        default = symmetric_start(self.n_components, n_features)
        given = (self.weights_init, self.means_init, self.covariances_init)
        parts = (default.weights, default.means, default.covariances)
        return Mixture(
            *(
                part if init is None else np.asarray(init, dtype=np.float64)
                for init, part in zip(given, parts, strict=True)
            )
        )

    def _expose(self, mixture: Mixture, n_iter: int) -> None:
        self.weights_, self.means_ = mixture.weights, mixture.means
        self.covariances_, self.n_iter_ = mixture.covariances, n_iter

    def _log_joint(self, X: FloatArray) -> FloatArray:
        return forward(self.mixture_, X)

    def _n_parameters(self) -> int:
        K, D = self.means_.shape
        return K * D * (D + 1) // 2 + K * D + K - 1
