"""Triangular matrices: factors of symmetric positive definite ones, and products with samples."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import get_blas_funcs
from scipy.linalg.lapack import get_lapack_funcs

from embench.types import FloatArray

BLAS_FROM = 16
"""From this size a product with a triangular matrix takes BLAS less time than one with any matrix:
half the operations, .6 of the time at 64."""

LAPACK_FROM = 16
"""From this size a triangular inverse by LAPACK, matrix by matrix, beats NumPy's general one for
the whole stack at once: a third of the operations against one call."""


def inverse_factors(matrices: FloatArray) -> FloatArray:
    """Upper triangular P with P P' = inverse, for a stack [..., D, D].

    Raises:
        np.linalg.LinAlgError: A matrix is not positive definite.
    """
    scale_tril = np.linalg.cholesky(matrices)
    return triangular_inverses(scale_tril).swapaxes(-1, -2)


def triangular_inverses(lower: NDArray[Any]) -> FloatArray:
    """Inverses of lower triangular matrices [..., D, D], exactly zero above the diagonal."""
    size = lower.shape[-1]
    if size < LAPACK_FROM:
        return np.linalg.inv(lower) * _lower_triangle(size)
    (trtri,) = get_lapack_funcs(("trtri",), (lower,))
    inverses = np.empty_like(lower)
    for i in np.ndindex(lower.shape[:-2]):
        # LAPACK reads columns first: to it our lower triangle is an upper one.
        inverses[i] = trtri(lower[i].T, lower=0)[0].T
    return inverses


def transposed_product(upper: Any, Z: Any) -> Any:
    """upper' Z for an upper triangular matrix [D, D] and Z [D, n], which may be overwritten."""
    if len(Z) < BLAS_FROM or not isinstance(Z, np.ndarray):
        return upper.T @ Z
    (trmm,) = get_blas_funcs(("trmm",), (upper, Z))
    # BLAS reads columns first: to it our Z is Z', and upper its transpose, a lower triangle.
    return trmm(1.0, upper.T, Z.T, side=1, lower=1, trans_a=1, overwrite_b=1).T


def symmetric(matrices: FloatArray) -> FloatArray:
    """Equal to their transposes to the last bit: products of floats are not."""
    return (matrices + matrices.swapaxes(-1, -2)) / 2


@cache
def _lower_triangle(size: int) -> NDArray[Any]:
    return np.tri(size)
