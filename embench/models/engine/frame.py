"""The frame of the passes: samples centred and whitened, so that expanding squares is safe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from embench.models.engine import linalg
from embench.models.engine.family import Family, Parameters
from embench.types import FloatArray


@dataclass(frozen=True)
class Frame:
    """y = W (x - centre), where W is the inverse of the lower triangular ``scale_tril`` [u].

    Shapes: ``centre`` [..., D], ``scale_tril`` and ``inverse`` [..., D, D]; ``inverse`` is W.
    """

    family: Family
    centre: FloatArray
    scale_tril: FloatArray
    inverse: FloatArray

    @classmethod
    def of(
        cls, family: Family, mean: FloatArray, covariance: FloatArray, reg_covar: float
    ) -> Frame:
        """The frame in which data of this mean and covariance [..., D, D] are as round as the
        family allows."""
        scale_tril = family.unit(covariance + reg_covar * np.eye(mean.shape[-1]))
        return cls(family, mean, scale_tril, linalg.triangular_inverses(scale_tril))

    @cached_property
    def log_scale(self) -> FloatArray:
        """Log-volume of the frame's unit [...]: log p(x) = log p(y) - log_scale."""
        return np.log(self.scale_tril.diagonal(0, -2, -1)).sum(-1)

    def __getitem__(self, problems: Any) -> Frame:
        """The frame of one of many problems, or of some."""
        parts = (self.centre[problems], self.scale_tril[problems], self.inverse[problems])
        return Frame(self.family, *parts)

    def place(self, X: FloatArray) -> FloatArray:
        """Samples of X [..., n, D] in the frame, [..., D, n]."""
        centred = (X - self.centre[..., None, :]).swapaxes(-1, -2)
        if self.family.is_rotated:
            return self.inverse @ centred
        return self.inverse.diagonal(0, -2, -1)[..., None] * centred

    def inward(self, parameters: Parameters) -> Parameters:
        """Parameters of X as parameters of Y."""
        shifted = parameters.means - self.centre[..., None, :]
        means = shifted @ self.inverse.swapaxes(-1, -2)
        return self._rescaled(parameters, means, self.inverse, self.scale_tril)

    def outward(self, parameters: Parameters) -> Parameters:
        """Parameters of Y as parameters of X."""
        means = parameters.means @ self.scale_tril.swapaxes(-1, -2) + self.centre[..., None, :]
        return self._rescaled(parameters, means, self.scale_tril, self.inverse)

    def regularisation(self, reg_covar: float) -> FloatArray:
        """What adding ``reg_covar`` [u^2] to the diagonal of a covariance of X is for one of Y."""
        return reg_covar * self._unit_regularisation

    @cached_property
    def _unit_regularisation(self) -> FloatArray:
        return self.family.regularisation(self.inverse)

    def _rescaled(
        self, parameters: Parameters, means: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> Parameters:
        """The parameters under y -> A y; means are given."""
        weights, _, covariances, factors = parameters
        return Parameters(weights, means, *self.family.rescale(covariances, factors, A, inverse))
