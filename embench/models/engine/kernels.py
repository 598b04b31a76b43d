"""What a pass does to one chunk: products, softmax, and the exact way for single components."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from embench.models.engine.arrays import Arrays, to_numpy
from embench.models.engine.chunks import row_chunks
from embench.models.engine.family import Family, Parameters
from embench.types import FloatArray

FEW_ROWS = 4
"""Up to as many rows, a product with a long transposed matrix is faster as one with a vector for
each row: BLAS packs the long side of a matrix for next to nothing."""

MANY_PRODUCTS = 256
"""From as many columns, a short and wide matrix times products is faster transposed, by a quarter
with OpenBLAS in float64; bringing the result back costs little."""

PICKED = 0.25
"""Share of samples that count for a component, below which picking them out of all pays."""

NEGLIGIBLE = 1e-3
"""In units of the precision: responsibilities this far below their mean change no digit."""

Posterior = Callable[[Any, Any], tuple[Any, Any]]
"""What an E-step makes of a log-joint [..., K, n], which it may overwrite, with the functions of
its library: log-densities [..., n] and responsibilities [..., K, n]."""


def softmax(log_joint: Any, xp: Any) -> tuple[Any, Any]:
    """Log-density [..., n] and responsibilities [..., K, n], in place and with one exponential."""
    largest = xp.amax(log_joint, -2)
    log_joint -= largest[..., None, :]
    xp.exp(log_joint, out=log_joint)
    total = log_joint.sum(-2)
    log_joint *= (1 / total)[..., None, :]
    return xp.log(total) + largest, log_joint


def log_joints(factors: Any, products: Any, out: Any, arrays: Arrays) -> None:
    """``factors @ products`` into ``out``, [..., rows, n].

    A component of weight 0 has a factor of -inf, and BLAS kernels of AVX-512 multiply it by the
    zeros that they pad with: the flag for an invalid operation says nothing of the result.
    """
    with np.errstate(invalid="ignore"):
        if factors.ndim > 2 or factors.shape[-1] < MANY_PRODUCTS:
            arrays.xp.matmul(factors, products, out=out)
            return
        transposed = arrays.scratch("transposed", *out.shape[::-1])
        arrays.xp.matmul(products.T, factors.T, out=transposed)
    out[...] = transposed.T


def moments(resp: Any, products: Any, arrays: Arrays) -> Any:
    """``resp @ products'``, [..., rows, n_products]."""
    n_rows, n_products = resp.shape[-2], products.shape[-2]
    if n_rows > FEW_ROWS:
        return resp @ products.swapaxes(-1, -2)
    found = arrays.empty(*resp.shape[:-2], n_rows, n_products)
    for k in range(n_rows):
        found[..., k, :] = (products @ resp[..., k, :, None])[..., 0]
    return found


class Exact:
    """Log-joints and moments without expanding a square: one component, samples minus its mean."""

    def __init__(
        self, arrays: Arrays, family: Family, parameters: Parameters, log_scale: FloatArray
    ) -> None:
        self.arrays, self.family, self.parameters = arrays, family, parameters
        self.log_scale = log_scale

    def log_joint_of(self, index: tuple[int, ...], Y: Any) -> Any:
        """Of samples [D, n], [n] [nat]."""
        factor = self.arrays.of(self.family.own(self.parameters.precisions_cholesky, index))
        white = self.family.whiten(self._centred(index, Y), factor)
        white *= white
        return self._constant[index] - 0.5 * white.sum(-2)

    def moments_of(
        self, index: tuple[int, ...], Y: Any, resp: Any
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Count, first and second moments about the mean; what changes no digit is left out."""
        count = resp.sum()
        counting = resp > NEGLIGIBLE * self.arrays.eps * (count / len(resp))
        if counting.sum() < PICKED * len(resp):
            Y, resp = Y[:, counting], resp[counting]
        Z = self._centred(index, Y)
        first = Z @ resp
        Z *= resp**0.5
        return to_numpy(count), to_numpy(first), to_numpy(self.family.scatter(Z))

    def _centred(self, index: tuple[int, ...], Y: Any) -> Any:
        """Y minus the component's mean, in scratch memory: the next call overwrites it."""
        mean = self.arrays.of(self.parameters.means[index])
        out = self.arrays.scratch("centred", *Y.shape)
        return self.arrays.xp.subtract(Y, mean[:, None], out=out)

    def log_joint(self, Y: Any) -> FloatArray:
        """Of samples [D, n] and all components, [..., K, n] [nat]."""
        joint = np.empty((*self.parameters.weights.shape, Y.shape[-1]))
        for rows in row_chunks(Y.T):
            for index in np.ndindex(joint.shape[:-1]):
                joint[(*index, rows)] = to_numpy(self.log_joint_of(index, Y[:, rows]))
        return joint

    @cached_property
    def _constant(self) -> FloatArray:
        return self.family.constant(self.parameters, self.log_scale)
