"""The frame of the passes: samples centred and whitened, so that expanding squares is safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embench.models.engine import linalg
from embench.models.engine.family import Diag, Family, Parameters, Spherical, Tied
from embench.types import FloatArray

RIDGE = 1e-12
"""Added to the variances that the frame is made of, relative to them: a frame can be inverted
whatever the data."""


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
        family allows: full matrices allow any direction, diag each axis, spherical one scale."""
        variances = np.diagonal(covariance, axis1=-2, axis2=-1) + reg_covar
        # A column that does not vary, of data that are not regularised, keeps its unit.
        variances = np.where(variances > 0, variances, 1.0)
        identity = np.eye(mean.shape[-1])
        if isinstance(family, Spherical):
            scale_tril = np.sqrt(variances.mean(-1))[..., None, None] * identity
        elif isinstance(family, Diag):
            scale_tril = np.sqrt(variances)[..., None] * identity
        else:
            scale_tril = _scale_tril(covariance + reg_covar * identity, variances)
        return cls(family, mean, scale_tril, linalg.triangular_inverses(scale_tril))

    @property
    def log_scale(self) -> FloatArray:
        """Log-volume of the frame's unit [...]: log p(x) = log p(y) - log_scale."""
        return np.log(np.diagonal(self.scale_tril, axis1=-2, axis2=-1)).sum(-1)

    def __getitem__(self, problems: Any) -> Frame:
        """The frame of one of many problems, or of some."""
        parts = (self.centre[problems], self.scale_tril[problems], self.inverse[problems])
        return Frame(self.family, *parts)

    def place(self, X: FloatArray) -> FloatArray:
        """Samples of X [..., n, D] in the frame, [..., D, n]."""
        return self.inverse @ (X - self.centre[..., None, :]).swapaxes(-1, -2)

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
        if isinstance(self.family, Spherical):
            return reg_covar * np.square(self.inverse[..., 0, 0])[..., None]
        if isinstance(self.family, Diag):
            scales = np.diagonal(self.inverse, axis1=-2, axis2=-1)
            return reg_covar * np.square(scales)[..., None, :]
        matrix = reg_covar * self.inverse @ self.inverse.swapaxes(-1, -2)
        return matrix if isinstance(self.family, Tied) else matrix[..., None, :, :]

    def _rescaled(
        self, parameters: Parameters, means: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> Parameters:
        """The parameters under y -> A y, A lower triangular; means are given."""
        weights, _, covariances, factor = parameters
        if isinstance(self.family, Spherical):
            scale = A[..., 0, 0][..., None]
            return Parameters(weights, means, covariances * scale**2, factor / scale)
        if isinstance(self.family, Diag):
            scale = np.diagonal(A, axis1=-2, axis2=-1)[..., None, :]
            return Parameters(weights, means, covariances * scale**2, factor / scale)
        if not isinstance(self.family, Tied):
            A, inverse = A[..., None, :, :], inverse[..., None, :, :]
        covariances = linalg.symmetric(A @ covariances @ A.swapaxes(-1, -2))
        return Parameters(weights, means, covariances, inverse.swapaxes(-1, -2) @ factor)


def _scale_tril(covariance: FloatArray, variances: FloatArray) -> FloatArray:
    """Cholesky factor of a covariance that may be singular."""
    ridge = RIDGE
    while True:
        padded = covariance + ridge * variances[..., None] * np.eye(variances.shape[-1])
        try:
            return np.linalg.cholesky(padded)
        except np.linalg.LinAlgError:
            ridge *= 100
