"""EM for Gaussian mixtures, without estimators around it: what `em` and all its variants run on.

**The formulation.** A Gaussian log-density is linear in the products of the sample's features:
with y = (1, y_i, y_i y_j) one matrix product of coefficients and products gives the log-joint of
every component, and one of responsibilities and the same products gives every sufficient
statistic. Both are matrix products in their fastest shape, over chunks that stay in the cache.

**The frame.** Expanding a square cancels digits where data lie far from the origin, so samples are
centred and whitened once, before the first iteration, and parameters live in that frame until they
are shown. Where this is not enough (`Samples.cancellation`: tight components far apart), the pass
takes samples minus means instead: exact wherever the data lie, and also faster where few components
share the products of many features.

**Layout.** Samples are feature-major, ``[..., n_features + 1, n_samples]``, the last row ones; what
is per sample and component is ``[..., n_components, n_samples]``: a softmax over a short last
dimension is many times slower than over an earlier one. Leading dimensions are independent
problems, or restarts over the same samples.

**Arrays.** The pass over the samples runs on NumPy arrays or on torch tensors, by the few functions
that both spell alike; statistics come back as float64 NumPy, and the parameters, which are small,
are updated there. On CPUs NumPy was the faster of the two: its exponential twice as fast, its
matrix products a little, and for small problems its calls cost a third of torch's.

| module | what it knows |
|---|---|
| `arrays` | NumPy or torch |
| `linalg` | triangular matrices |
| `family` | parameters, statistics, and what a covariance family has to say |
| `covariances` | the families |
| `frame` | centring and whitening, there and back |
| `chunks`, `kernels` | pieces of samples, and what is done to one |
| `samples` | the passes over the samples |
"""

from __future__ import annotations

from embench.models.engine.arrays import Arrays
from embench.models.engine.chunks import mean_and_covariance, split
from embench.models.engine.covariances import FAMILIES
from embench.models.engine.family import (
    ILL_DEFINED,
    BoolArray,
    Family,
    IllDefinedCovariance,
    Parameters,
    PrecisionWarning,
    RegularisationWarning,
    Statistics,
    warn_of_regularisation,
)
from embench.models.engine.frame import Frame
from embench.models.engine.kernels import Posterior, softmax
from embench.models.engine.samples import Samples, em_step, log_joint

__all__ = [
    "FAMILIES",
    "ILL_DEFINED",
    "Arrays",
    "BoolArray",
    "Family",
    "Frame",
    "IllDefinedCovariance",
    "Parameters",
    "Posterior",
    "PrecisionWarning",
    "RegularisationWarning",
    "Samples",
    "Statistics",
    "em_step",
    "log_joint",
    "mean_and_covariance",
    "softmax",
    "split",
    "warn_of_regularisation",
]
