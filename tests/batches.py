"""Datasets side by side for the tests of layers and operators, and what comes out of these."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose
from strategies import random_mixture, random_samples

from embench import make_dataset
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.em_map import Mixtures
from embench.types import Mixture


def mixture(mixtures, i=0):
    """One of them as a value for the judge."""
    parts = (mixtures.weights, mixtures.means, mixtures.covariances)
    return Mixture(*(part[i].detach().double().numpy() for part in parts))


def disturbed(module, seed=0, size=0.1):
    """The module as if it had been trained: nothing in it is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.parameters():
            part += size * torch.randn(part.shape, generator=generator, dtype=part.dtype)
    return module


def many(n_datasets, n_samples=50, n_components=3, n_features=2, seed=0):
    """Datasets [B, N, D] and a start for each."""
    rng = np.random.default_rng(seed)
    starts = [random_mixture(rng, n_components, n_features) for _ in range(n_datasets)]
    X = np.stack([random_samples(rng, start, n_samples) for start in starts])
    return torch.tensor(X), stacked(starts)


def clusters(n_datasets, n_components=3, n_features=2):
    """The same where EM converges in some hundred steps, with the truth as the start."""
    data = [
        make_dataset(
            "blobs", seed=i, n_samples=150, n_components=n_components, n_features=n_features
        )
        for i in range(n_datasets)
    ]
    X = torch.tensor(np.stack([one.X_train for one in data]))
    return X, stacked([one.truth for one in data])


def alone(mixtures, i):
    return Mixtures(*(part[i : i + 1] for part in mixtures))


def assert_same_clustering(one, other, tol=1e-9):
    """Two results of a layer are equal but for rounding."""
    parts = zip(
        (one.responsibilities, *one.parameters, one.log_likelihood),
        (other.responsibilities, *other.parameters, other.log_likelihood),
        strict=True,
    )
    for a, b in parts:
        assert_allclose(a.detach(), b.detach(), rtol=tol, atol=tol)
