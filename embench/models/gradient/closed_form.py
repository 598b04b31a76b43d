"""The gradient of a mixture's log-likelihood without a graph: the engine's statistics are it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embench.models.engine import Family, Parameters, Samples, Statistics
from embench.models.gradient.coordinates import factored, upper_triangle
from embench.models.gradient.likelihood import Coordinates
from embench.types import FloatArray


class ClosedFormNLL(torch.autograd.Function):
    """Mean negative log-likelihood of samples [nat], with a gradient derived by hand.

    By Fisher's identity the gradient of the log-likelihood is that of the expected log-joint, which
    is a function of the statistics of one E-step: with counts N_k, first moments f_k and second
    moments M_k about the mean, and precisions P_k P_k',

        d/d log w_k = N_k,   d/d mu_k = P_k P_k' f_k,   d/d P_k = N_k diag(1 / P_k) - M_k P_k

    of which the upper triangle counts; those of the free numbers behind them follow by the chain
    rule. Covariances that are shared or have fewer numbers add up what their numbers stand for. No
    graph is kept, and nothing is factorised.

    ``apply(*coordinates, samples)`` takes the `Coordinates` of one mixture in the frame of the
    `Samples`, on the CPU; the result is in float64.

    Source:
        Xu and Jordan (1996), On convergence properties of the EM algorithm for Gaussian mixtures,
        theorem 1; Petersen and Pedersen (2012), The Matrix Cookbook, sections 2.1 and 2.4.

    Example:
        >>> from embench.models.engine import FAMILIES
        >>> samples = Samples.of(np.array([[1.0], [3.0]]), FAMILIES["full"], reg_covar=0)
        >>> mean = torch.ones(1, 1, 1, requires_grad=True)
        >>> others = torch.zeros(1, 1, 1), torch.zeros(1, 0, 1), samples
        >>> ClosedFormNLL.apply(torch.zeros(1, 1), mean, *others).backward()
        >>> mean.grad.item()  # in the frame the samples are -1 and 1
        1.0
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        means: Tensor,
        log_stddevs: Tensor,
        coefficients: Tensor,
        samples: Samples,
    ) -> Tensor:
        coordinates = Coordinates(logits, means, log_stddevs, coefficients)
        parameters = factored(coordinates, samples.family)
        statistics = samples.e_step(parameters)
        gradients = _pulled_back(
            _gradients(statistics, parameters, samples.family), parameters, coordinates
        )
        ctx.gradients = [
            torch.as_tensor(-gradient / statistics.n_samples).to(part).reshape(part.shape)
            for gradient, part in zip(gradients, coordinates, strict=True)
        ]
        return torch.as_tensor(-statistics.log_likelihood)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        [scale] = upstream
        return *(scale.to(part) * part for part in ctx.gradients), None


def _gradients(
    statistics: Statistics, parameters: Parameters, family: Family
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of the total log-likelihood by log weights [K], means [K, D] and factors, in the shape that
    these have in the family."""
    _, means, _, factors = parameters
    counts, shift = statistics.counts, means - statistics.about
    firsts = statistics.firsts - counts[:, None] * shift
    seconds = family.translate(statistics.seconds, counts, statistics.firsts, shift)
    own_counts = family.per_covariance(counts)
    if family.is_rotated:
        of_means = (factors @ (factors.swapaxes(-1, -2) @ firsts[..., None]))[..., 0]
        of_factors = -(seconds @ factors)
        # Below the diagonal there is nothing to be changed, and nobody looks.
        diagonal = np.einsum("...ii->...i", of_factors)
        diagonal += own_counts[..., 0] / factors.diagonal(0, -2, -1)
        return counts, of_means, of_factors
    # Second moments of one variance for all features are means over the features.
    n_alike = means.shape[1] if family.own_dimensions == 0 else 1
    rows = 1 if family.is_shared else len(means)
    of_means = np.square(factors).reshape(rows, -1) * firsts
    return counts, of_means, n_alike * (own_counts / factors - seconds * factors)


def _pulled_back(
    gradients: tuple[FloatArray, FloatArray, FloatArray],
    parameters: Parameters,
    coordinates: Coordinates,
) -> tuple[FloatArray, ...]:
    """By logits, means, logarithms of deviations and coefficients, of any shape of their size."""
    of_log_weights, of_means, of_factors = gradients
    of_logits = of_log_weights - parameters.weights * of_log_weights.sum()
    by_scale = -of_factors * parameters.precisions_cholesky
    C, n_features = len(coordinates.log_stddevs), parameters.means.shape[1]
    if coordinates.coefficients.shape[1] == 0:
        return of_logits, of_means, by_scale, np.zeros((C, 0))
    places = upper_triangle(n_features)
    by_scale, of_factors = (
        np.reshape(part, (C, n_features, n_features)) for part in (by_scale, of_factors)
    )
    of_log_stddevs = np.triu(by_scale).sum(1)
    scales = np.exp(-coordinates.log_stddevs.detach().numpy()[:, places[1], 0])
    return of_logits, of_means, of_log_stddevs, of_factors[:, *places] * scales
