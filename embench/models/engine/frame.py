"""The frame of the passes: samples centred and whitened, so that expanding squares is safe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from embench.models.engine import linalg
from embench.models.engine.family import Family, IllDefinedCovariance, Parameters
from embench.types import FloatArray


@dataclass(frozen=True)
class Frame:
    """y = W (x - centre), where W is the inverse of ``scale`` [u].

    ``centre`` is [..., D]. ``scale`` and ``inverse``, which is W, are lower triangular matrices
    [..., D, D], or their diagonals [..., D] where the family mixes no features.
    """

    family: Family
    centre: FloatArray
    scale: FloatArray
    inverse: FloatArray

    @classmethod
    def of(
        cls, family: Family, mean: FloatArray, covariance: FloatArray, reg_covar: float
    ) -> Frame:
        """The frame in which data are as round as the family allows.

        Args:
            family: One of `FAMILIES`.
            mean: Of the data, [..., D] [u].
            covariance: Of the data, [..., D, D], or variances [..., D] where the family mixes no
                features [u^2].
            reg_covar: Added to the variances [u^2].

        Raises:
            IllDefinedCovariance: The covariance is not finite.
        """
        if not np.isfinite(covariance).all():
            raise IllDefinedCovariance(f"the data are too large for {covariance.dtype}: scale them")
        scale = family.unit(covariance + reg_covar * family.identity(mean.shape[-1]))
        inverse = linalg.triangular_inverses(scale) if family.is_rotated else 1 / scale
        return cls(family, mean, scale, inverse)

    @property
    def scales(self) -> FloatArray:
        """Of the features, [..., D]: the diagonal of ``scale`` [u]."""
        return self.scale.diagonal(0, -2, -1) if self.family.is_rotated else self.scale

    @cached_property
    def log_scale(self) -> FloatArray:
        """Log-volume of the frame's unit [...]: log p(x) = log p(y) - log_scale."""
        return np.log(self.scales).sum(-1)

    def __getitem__(self, problems: Any) -> Frame:
        """The frame of one of many problems, or of some."""
        parts = (self.centre[problems], self.scale[problems], self.inverse[problems])
        return Frame(self.family, *parts)

    def place(self, X: FloatArray) -> FloatArray:
        """Samples of X [..., n, D] in the frame, [..., D, n]."""
        return self._apply(self.inverse, X - self.centre[..., None, :]).swapaxes(-1, -2)

    def inward(self, parameters: Parameters) -> Parameters:
        """Parameters of X as parameters of Y."""
        means = self._apply(self.inverse, parameters.means - self.centre[..., None, :])
        return self._rescaled(parameters, means, self.inverse, self.scale)

    def outward(self, parameters: Parameters) -> Parameters:
        """Parameters of Y as parameters of X."""
        means = self._apply(self.scale, parameters.means) + self.centre[..., None, :]
        return self._rescaled(parameters, means, self.scale, self.inverse)

    def regularisation(self, reg_covar: float) -> FloatArray:
        """What adding ``reg_covar`` [u^2] to the diagonal of a covariance of X is for one of Y."""
        return reg_covar * self._unit_regularisation

    @cached_property
    def _unit_regularisation(self) -> FloatArray:
        return self.family.regularisation(self.inverse)

    def _apply(self, A: FloatArray, X: FloatArray) -> FloatArray:
        """A x for every row x of X [..., n, D]."""
        if self.family.is_rotated:
            # Features first in memory, as passes want samples.
            return (A @ X.swapaxes(-1, -2)).swapaxes(-1, -2)
        return A[..., None, :] * X

    def _rescaled(
        self, parameters: Parameters, means: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> Parameters:
        """The parameters under y -> A y; means are given."""
        weights, _, covariances, factors = parameters
        return Parameters(weights, means, *self.family.rescale(covariances, factors, A, inverse))
