"""The gradient of a mixture's log-likelihood without a graph: the engine's statistics are it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embench.models.engine import Family, Parameters, Samples, Statistics
from embench.models.gradient.coordinates import of_components
from embench.models.gradient.likelihood import Components
from embench.types import FloatArray


class ClosedFormNLL(torch.autograd.Function):
    """Mean negative log-likelihood of samples [nat], with a gradient derived by hand.

    By Fisher's identity the gradient of the log-likelihood is that of the expected log-joint, which
    is a function of the statistics of one E-step: with counts N_k, first moments f_k and second
    moments M_k about the mean, and precisions P_k P_k',

        d/d log w_k = N_k,   d/d mu_k = P_k P_k' f_k,   d/d P_k = N_k diag(1 / P_k) - M_k P_k

    of which the upper triangle counts. Covariances that are shared or have fewer numbers add up
    what their numbers stand for. No graph is kept, and nothing is factorised.

    ``apply(log_weights, means, factors, samples)`` takes the parts of `Components` of one mixture
    in the frame of the `Samples`; the result is in float64.

    Source:
        Xu and Jordan (1996), On convergence properties of the EM algorithm for Gaussian mixtures,
        theorem 1; Petersen and Pedersen (2012), The Matrix Cookbook, eq. 49 and 61.

    Example:
        >>> from embench.models.engine import FAMILIES
        >>> samples = Samples.of(np.array([[1.0], [3.0]]), FAMILIES["full"], reg_covar=0)
        >>> weight, mean = torch.zeros(1, 1), torch.ones(1, 1, 1, requires_grad=True)
        >>> ClosedFormNLL.apply(weight, mean, torch.ones(1, 1, 1, 1), samples).backward()
        >>> mean.grad.item()  # in the frame the samples are -1 and 1
        1.0
    """

    @staticmethod
    def forward(
        ctx: Any, log_weights: Tensor, means: Tensor, factors: Tensor, samples: Samples
    ) -> Tensor:
        parameters = of_components(Components(log_weights, means, factors), samples.family)
        statistics = samples.e_step(parameters)
        gradients = _gradients(statistics, parameters, samples.family)
        ctx.gradients = [
            torch.as_tensor(-gradient / statistics.n_samples).to(part).reshape(part.shape)
            for gradient, part in zip(gradients, (log_weights, means, factors), strict=True)
        ]
        return torch.as_tensor(-statistics.log_likelihood)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        [scale] = upstream
        return *(scale.to(part) * part for part in ctx.gradients), None


def _gradients(
    statistics: Statistics, parameters: Parameters, family: Family
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of the total log-likelihood, in the shapes of the engine's parameters."""
    _, means, _, factors = parameters
    counts, shift = statistics.counts, means - statistics.about
    firsts = statistics.firsts - counts[:, None] * shift
    seconds = family.translate(statistics.seconds, counts, statistics.firsts, shift)
    own_counts = family.per_covariance(counts)
    if family.is_rotated:
        identity = np.eye(means.shape[1])
        of_means = (factors @ (factors.swapaxes(-1, -2) @ firsts[..., None]))[..., 0]
        of_factors = np.triu(own_counts * identity / factors.diagonal(0, -2, -1)[..., None])
        of_factors = of_factors - np.triu(seconds @ factors)
    else:
        # Second moments of one variance for all features are means over the features.
        n_alike = means.shape[1] if family.own_dimensions == 0 else 1
        rows = 1 if family.is_shared else len(means)
        of_means = np.square(factors).reshape(rows, -1) * firsts
        of_factors = n_alike * (own_counts / factors - seconds * factors)
    return counts, of_means, of_factors
