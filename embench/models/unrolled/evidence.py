"""What an E-step says of samples and components, as a network is to see it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from embench.models.unrolled.em_map import Mixtures, Samples, log_joint

FAINT = -20.0
"""Log-responsibilities below this are all the same to a network [nat]."""

N_VIEWS, N_FACTS = 3, 10
"""What is seen of each sample, and what a network sees of each component: see `Evidence`."""


class Evidence(NamedTuple):
    """What an E-step says, in numbers that no affine map of the data changes.

    ``log_likelihood`` [B], a sum [nat]; ``log_resp`` and ``resp`` [B, K, N]. Three views of each
    sample: ``faintness`` [B, K, N], its log-responsibility, cut at `FAINT`; ``nearness`` [B, K, N],
    1 / (1 + d^2 / D) by the Mahalanobis distance d; ``density`` [B, 1, N], how dense its place is.
    ``facts`` [B, K, S], of each component: mean and mean square of the views and mean of the
    responsibilities, weighted by responsibilities, log-weight, log-volume, and the logarithm of its
    samples per feature.
    """

    log_likelihood: Tensor
    log_resp: Tensor
    resp: Tensor
    faintness: Tensor
    nearness: Tensor
    density: Tensor
    facts: Tensor

    @classmethod
    def of(cls, samples: Samples, mixtures: Mixtures) -> Evidence:
        """Of mixtures of the frame.

        Passes over [B, K, N] are what it costs, and most of that is memory: constant factors are
        left to what is small, and what can be is done in place.
        """
        D = mixtures.means.shape[-1]
        joint = log_joint(samples, mixtures)
        log_resp = joint.log_softmax(1)
        log_density = joint[:, 0] - log_resp[:, 0]
        resp = log_resp.exp() * samples.counted[:, None]
        total = (log_density * samples.counted).sum(-1)
        mean = (total / samples.n_samples)[:, None]

        log_weights = mixtures.logits.log_softmax(-1)
        log_volume = mixtures.scale_tril.diagonal(0, -2, -1).log().sum(-1)
        log_scale = samples.scale.diagonal(0, -2, -1).log().sum(-1)[:, None]
        peak = log_weights - log_volume - log_scale - 0.5 * D * math.log(2 * math.pi)
        faintness = log_resp.clamp(min=FAINT)
        nearness = (peak[..., None] - joint).clamp(min=0).mul_(2 / D).add_(1).reciprocal_()
        density = ((log_density - mean) / (3 * math.sqrt(D))).tanh()[:, None]

        counts = resp.sum(-1)
        facts = torch.stack(
            [
                *_moments(resp, faintness, FAINT),
                *_moments(resp, nearness, 1.0),
                (resp @ density.mT)[..., 0],
                (resp @ density.mT.square())[..., 0],
                _dot(resp, log_resp.exp()),
            ],
            dim=-1,
        )
        own = [log_weights.clamp(min=-8), log_volume / D, torch.log((counts + 1) / (D + 1))]
        facts = torch.cat([facts / (counts + 1e-3)[..., None], torch.stack(own, dim=-1)], dim=-1)
        return cls(total, log_resp, resp, faintness, nearness, density, facts)


def _moments(resp: Tensor, view: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Sums of a view and of its squares, in units of it, weighted by responsibilities: [B, K]."""
    weighted = resp * view
    return weighted.sum(-1) / unit, _dot(weighted, view) / unit**2


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Products summed over the samples, [B, K] of [B, K, N]."""
    return (left[..., None, :] @ right[..., None])[..., 0, 0]
