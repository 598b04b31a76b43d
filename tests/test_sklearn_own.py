"""scikit-learn's own tests of GaussianMixture, run with ``em`` in its place."""

from __future__ import annotations

import numpy as np
import pytest

from embench.models.em import GaussianMixture

theirs = pytest.importorskip("sklearn.mixture.tests.test_gaussian_mixture")
theirs.GaussianMixture = GaussianMixture

pytestmark = pytest.mark.filterwarnings("ignore")

NOT_OURS = {
    # Counts calls of a private function that every M-step of scikit-learn makes.
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters",
}

globals().update(
    (name, test)
    for name, test in vars(theirs).items()
    # Of other array libraries than NumPy: `device` is our way to a GPU.
    if name.startswith("test_") and name not in NOT_OURS and "array_api" not in name
)


@pytest.fixture
def global_random_seed():
    return 42


@pytest.fixture(params=["float64", "float32"])
def global_dtype(request):
    return np.dtype(request.param)
