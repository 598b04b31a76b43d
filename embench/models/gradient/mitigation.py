"""What becomes of components that collapse onto samples, where the likelihood has no bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from embench.models.engine import Parameters, Samples
from embench.models.gradient.coordinates import to_coordinates
from embench.models.gradient.likelihood import (
    Components,
    Coordinates,
    log_det,
    whitened,
    whitening,
)
from embench.models.variants.prior import Prior


class SingularityWarning(RuntimeWarning):
    """A component collapsed onto samples, and something was done about it."""


Mitigation = Callable[[Coordinates, Tensor, Samples, np.random.RandomState], None]
"""Changes coordinates in place: given are the components [C] that collapsed, as a mask."""


def clamp(
    coordinates: Coordinates, collapsed: Tensor, samples: Samples, random_state: object
) -> None:
    """Leave them where they are: `collapsed_components` has put their deviations on the floor."""


def reset(
    coordinates: Coordinates,
    collapsed: Tensor,
    samples: Samples,
    random_state: np.random.RandomState,
) -> None:
    """Put them to samples drawn by lot, with the covariance of all data; a covariance that
    components share becomes that of the data, and their means stay.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, page 433.
    """
    everything = to_coordinates(_one_gaussian(samples), samples.family)
    coordinates.log_stddevs[collapsed] = everything.log_stddevs
    coordinates.coefficients[collapsed] = everything.coefficients
    if samples.family.is_shared:
        return
    drawn = random_state.choice(samples.n_samples, int(collapsed.sum()))
    Y = torch.as_tensor(samples.Y)[:-1, torch.as_tensor(drawn)]
    coordinates.means[collapsed] = Y.T[..., None].to(coordinates.means)


MITIGATIONS: Mapping[str, Mitigation] = {"clamp": clamp, "reset": reset, "map": clamp}
"""By name; with "map" it is a prior in the objective that keeps components from collapsing."""


def collapsed_components(coordinates: Coordinates, floor: Tensor) -> Tensor:
    """Mask [C] of the covariances with a deviation below its ``floor`` [S, 1], put there now."""
    below = coordinates.log_stddevs < floor
    if below.any():
        torch.maximum(coordinates.log_stddevs, floor, out=coordinates.log_stddevs)
    return below.any(dim=1)[:, 0]


def _one_gaussian(samples: Samples) -> Parameters:
    """The samples' mean and covariance as a mixture of one component."""
    wide = samples.family.round_covariances(1, samples.n_features)
    _, one = samples.em_step(Parameters(np.ones(1), np.zeros((1, samples.n_features)), wide, wide))
    return one


def log_prior(prior: Prior, mixture: Components) -> Tensor:
    """Log-density of a conjugate prior but for its constant [nat], in the frame of the samples."""
    log_weights, means, factors = mixture
    centre = torch.zeros(means.shape[1] + 1, 1, dtype=means.dtype)
    centre[-1] = 1
    # One factor for all features stands for each of them.
    n_alike = means.shape[1] if factors.ndim == 3 and factors.shape[1] == 1 else 1
    return (
        prior.weight_counts * log_weights.sum()
        + prior.covariance_counts * log_det(mixture).sum()
        - 0.5 * prior.scale * n_alike * factors.square().sum()
        - 0.5 * prior.mean_counts * whitened(centre, whitening(mixture)).square().sum()
    )
