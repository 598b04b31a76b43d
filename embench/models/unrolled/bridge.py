"""From embench's values to those of torch, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from embench.models import engine
from embench.models.engine import Parameters
from embench.models.engine.linalg import symmetric
from embench.models.unrolled.em_map import Mixtures, Samples, products
from embench.types import Mixture


def stacked(mixtures: Sequence[Mixture], dtype: torch.dtype = torch.float64) -> Mixtures:
    """A mixture for each of B datasets as one value, for instance the starts of a layer.

    Raises:
        ValueError: They have not all the same numbers of components and features.
    """
    weights, means, covariances = (
        torch.as_tensor(np.stack([getattr(one, part) for one in mixtures]))
        for part in ("weights", "means", "covariances")
    )
    parts = (weights.log(), means, torch.linalg.cholesky(covariances))
    return Mixtures(*(part.to(dtype) for part in parts))


def placed(samples: engine.Samples) -> Samples:
    """The engine's samples as those of one dataset, in the frame that they are in."""
    Y = torch.as_tensor(samples.Y)[None]
    frame = [
        torch.as_tensor(part).to(Y)[None] for part in (samples.frame.centre, samples.frame.scale)
    ]
    ones = Y[:, -1]
    counted = ones if samples.weights is None else torch.as_tensor(samples.weights)[None]
    return Samples(products(Y[:, :-1], ones), counted, *frame)


def mixtures_of(samples: engine.Samples, parameters: Parameters) -> Mixtures:
    """The engine's mixture, where its samples are."""
    Y = torch.as_tensor(samples.Y)
    with np.errstate(divide="ignore"):
        parts = (
            np.log(parameters.weights),
            parameters.means,
            np.linalg.cholesky(parameters.covariances),
        )
    return Mixtures(*(torch.as_tensor(part).to(Y)[None] for part in parts))


def parameters_of(samples: engine.Samples, mixtures: Mixtures) -> Parameters:
    """The inverse of `mixtures_of`."""
    weights, means, covariances = (
        part.detach()[0].to("cpu", torch.float64).numpy()
        for part in (mixtures.weights, mixtures.means, mixtures.covariances)
    )
    covariances = symmetric(covariances)
    return Parameters(weights, means, covariances, samples.family.precisions_cholesky(covariances))
