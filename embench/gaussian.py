"""The judge's mathematics: Gaussian mixtures, also one for each sample, in float64 NumPy.

It shares no code with the models that it judges, and prefers being right to being fast.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from embench.types import ConditionalMixture, FloatArray, IntArray, Mixture

AGREEMENT = {"float64": 1e-9, "float32": 1e-3}
"""How far two computations of one log-likelihood [nat] may lie apart, relative to 1 + its size, by
the precision of the less precise one."""

WEIGHT_TOLERANCE = 1e-6
SYMMETRY_TOLERANCE = 1e-4
"""What float32 arithmetic may lack: a few units in its last place, over many components."""

ROWS = 8192
"""Samples per block: bounds the judge's memory at ROWS * n_components * 8 bytes and a little."""


def log_joint(mixture: Mixture, X: FloatArray) -> FloatArray:
    """Log of weight times density, for every sample and component.

    log w_k - 1/2 (|L_k^-1 (x - mu_k)|^2 + 2 sum log diag L_k + n_features log 2 pi), where
    L_k L_k' = S_k.

    Args:
        mixture: The mixture.
        X: Samples, shape (n_samples, n_features) [u].

    Returns:
        Shape (n_samples, n_components) [nat]; a weight of zero gives -inf. Scaling all inputs by
        c shifts the result by -n_features * log(c).

    Raises:
        ValueError: The n_features of X and of the mixture differ.
        numpy.linalg.LinAlgError: A covariance is not positive definite.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, eq. 2.43 and 9.7.

    Example:
        >>> one = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
        >>> log_joint(one, np.zeros((1, 2))) + np.log(2 * np.pi)
        array([[0.]])
    """
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or X.shape[1] != mixture.n_features:
        raise ValueError(
            f"expected X of shape (n_samples, {mixture.n_features}), got shape {X.shape}"
        )
    with np.errstate(divide="ignore"):
        log_weights = np.log(mixture.weights)
    out = np.empty((X.shape[0], mixture.n_components))
    for k, (mean, covariance) in enumerate(zip(mixture.means, mixture.covariances, strict=True)):
        scale_tril = np.linalg.cholesky(covariance)
        whitened = solve_triangular(scale_tril, (X - mean).T, lower=True)
        log_det = 2 * np.log(np.diag(scale_tril)).sum()
        quadratic = np.square(whitened).sum(axis=0)
        out[:, k] = log_weights[k] - 0.5 * (
            quadratic + log_det + mixture.n_features * np.log(2 * np.pi)
        )
    return out


def check(mixture: Mixture | ConditionalMixture) -> None:
    """See that a mixture, or each of many, is one, so that its density integrates to 1.

    Raises:
        ValueError: It holds numbers that are not finite, weights that are negative or do not sum
            to 1, or covariances that are not symmetric. That they are positive definite shows in
            `log_joint`.

    Example:
        >>> check(Mixture(np.full(2, 1.0), np.zeros((2, 1)), np.ones((2, 1, 1))))
        Traceback (most recent call last):
        ValueError: the weights sum to 2, a mixture's to 1
    """
    for name, array in vars(mixture).items():
        if not np.isfinite(array).all():
            raise ValueError(f"the {name} are not finite")
    if mixture.weights.min() < 0:
        raise ValueError(f"a weight is {mixture.weights.min():g}, a mixture's are >= 0")
    sums = np.atleast_1d(mixture.weights.sum(axis=-1))
    worst = sums[np.abs(sums - 1).argmax()]
    if abs(worst - 1) > WEIGHT_TOLERANCE:
        raise ValueError(f"the weights sum to {worst:g}, a mixture's to 1")
    transposed = mixture.covariances.swapaxes(-1, -2)
    if not np.allclose(mixture.covariances, transposed, rtol=SYMMETRY_TOLERANCE, atol=0):
        raise ValueError("a covariance is not symmetric")


def log_likelihoods(mixture: Mixture, X: FloatArray) -> FloatArray:
    """Log-density of each sample under the mixture, shape (n_samples,) [nat]."""
    blocks = [
        logsumexp(log_joint(mixture, X[start : start + ROWS]), axis=1)
        for start in range(0, len(X), ROWS)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)


def log_likelihood(mixture: Mixture, X: FloatArray) -> float:
    """Mean log-likelihood per sample [nat]; see `log_joint` for units and errors."""
    return float(log_likelihoods(mixture, X).mean())


def conditional_log_likelihoods(mixture: ConditionalMixture, Y: FloatArray) -> FloatArray:
    """Log-density of the targets of each sample under its own mixture, log p(y_i|x_i).

    Args:
        mixture: One Gaussian mixture for each sample.
        Y: Targets, shape (n_samples, n_targets) [u].

    Returns:
        Shape (n_samples,) [nat]; scaling all targets by c shifts the result by
        -n_targets * log(c).

    Raises:
        ValueError: The shapes of Y and of the means do not belong together.
        numpy.linalg.LinAlgError: A covariance is not positive definite.

    Source:
        Bishop (1994), Mixture density networks, eq. 22 and 24, here with full covariances.

    Example:
        >>> one = ConditionalMixture(np.ones((1, 1)), np.zeros((1, 1, 2)), np.eye(2)[None, None])
        >>> conditional_log_likelihoods(one, np.zeros((1, 2))) + np.log(2 * np.pi)
        array([0.])
    """
    Y = np.asarray(Y, dtype=np.float64)
    n_samples, _, n_targets = mixture.means.shape
    if Y.shape != (n_samples, n_targets):
        raise ValueError(
            f"expected Y of shape (n_samples, n_targets) = {(n_samples, n_targets)}, as the "
            f"mixtures are, got shape {Y.shape}"
        )
    scale_tril = np.linalg.cholesky(mixture.covariances)
    whitened = np.linalg.solve(scale_tril, (Y[:, None] - mixture.means)[..., None])[..., 0]
    log_det = 2 * np.log(np.diagonal(scale_tril, axis1=-2, axis2=-1)).sum(axis=-1)
    quadratic = np.square(whitened).sum(axis=-1)
    with np.errstate(divide="ignore"):
        log_weights = np.log(mixture.weights)
    joint = log_weights - 0.5 * (quadratic + log_det + n_targets * np.log(2 * np.pi))
    return logsumexp(joint, axis=1)


def conditional_log_likelihood(mixture: ConditionalMixture, Y: FloatArray) -> float:
    """Mean log p(y|x) per sample [nat]; see `conditional_log_likelihoods` for units and errors."""
    return float(conditional_log_likelihoods(mixture, Y).mean())


def agree(found: float, expected: float, dtype: str = "float64") -> bool:
    """Whether two log-likelihoods [nat] are one, computed in ``dtype`` or better.

    >>> agree(-3.0, -3.0 - 1e-12), agree(-3.0, -3.001), agree(-3.0, -3.001, "float32")
    (True, False, True)
    """
    tolerance = AGREEMENT.get(dtype, AGREEMENT["float32"])
    return bool(abs(found - expected) <= tolerance * (1 + abs(expected)))


def responsibilities(mixture: Mixture, X: FloatArray) -> FloatArray:
    """Posterior probability of each component, shape (n_samples, n_components), rows sum to 1."""
    joint = log_joint(mixture, X)
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


def sample(
    mixture: Mixture, n_samples: int, rng: np.random.Generator
) -> tuple[FloatArray, IntArray]:
    """Draw samples and the components they come from.

    Returns:
        X of shape (n_samples, n_features) [u] and labels of shape (n_samples,).
    """
    labels = rng.choice(mixture.n_components, size=n_samples, p=mixture.weights)
    X = rng.standard_normal((n_samples, mixture.n_features))
    for k, covariance in enumerate(mixture.covariances):
        members = labels == k
        X[members] = mixture.means[k] + X[members] @ np.linalg.cholesky(covariance).T
    return X, labels
