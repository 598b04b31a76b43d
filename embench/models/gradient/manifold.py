"""The manifold of covariance matrices, in coordinates in which it looks like any space.

The exponential and the logarithm of symmetric positive definite (SPD) matrices are pymanopt's. Of
the two libraries compared it is the one in NumPy, as the engine's statistics are, and takes half
the time of geoopt, whose torch functions warn that torch gives up the way they are compiled. What
it has not, parallel transport and L-BFGS, is here; its optimisers run loops of their own, from
which nothing can be pulled, so the line search is SciPy's.

**Coordinates.** The metric <V, W> = tr(S^-1 V S^-1 W) does not change when S = L L' becomes the
identity and V becomes A = L^-1 V L^-T. A point is its factor L, and a tangent vector is A, in
which inner products are sums of products, as L-BFGS in any textbook wants them. Nothing is lost
where a component is tight: S itself, which adds its mean's square to its covariance, is never
formed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from embench.models.engine import linalg
from embench.types import FloatArray


class Point(NamedTuple):
    """Lower triangular factors [K, n, n] of SPD matrices, and free numbers [m]."""

    factors: FloatArray
    free: FloatArray


class Manifold:
    """SPD matrices in the affine-invariant metric, and numbers in the Euclidean one.

    Tangent vectors are one vector [K n n + m] of coordinates: A of each matrix, then the numbers.
    """

    def __init__(self, n_matrices: int, size: int) -> None:
        from pymanopt.manifolds import SymmetricPositiveDefinite

        self.shape = n_matrices, size, size
        self.matrices = SymmetricPositiveDefinite(size, k=n_matrices)
        self.identity = np.broadcast_to(np.eye(size), self.shape)

    def moved(self, point: Point, step: FloatArray) -> tuple[Point, FloatArray]:
        """The end of a geodesic, and the velocity there: the step, transported.

        Raises:
            np.linalg.LinAlgError: It is too far away for floating point.
        """
        A, free = self._split(step)
        moved = linalg.symmetric(self.matrices.exp(self.identity, A))
        if not np.isfinite(moved).all():
            raise np.linalg.LinAlgError("a step beyond all numbers")
        factors = np.linalg.cholesky(moved)
        velocity = linalg.symmetric(linalg.triangular_inverses(factors) @ A @ factors)
        return Point(point.factors @ factors, point.free + free), self._joined(velocity, free)

    def transported(self, old: Point, new: Point, vectors: list[FloatArray]) -> FloatArray:
        """The step from one point to the other, and vectors at the first, all at the second.

        Args:
            old: Where the vectors are.
            new: Where they go, in parallel along the geodesic.
            vectors: Coordinates, each [size].

        Returns:
            Coordinates, (1 + len(vectors), size).
        """
        ratio = linalg.triangular_inverses(old.factors) @ new.factors
        A = self.matrices.log(self.identity, ratio @ ratio.swapaxes(-1, -2))
        # The root of the transport, seen from the factors at both ends, is a rotation.
        halfway = self.matrices.exp(self.identity, A / 2)
        rotation = linalg.triangular_inverses(ratio) @ halfway
        stacked = np.stack([self._joined(A, new.free - old.free), *vectors])
        A, free = self._split(stacked)
        return self._joined(linalg.symmetric(rotation @ A @ rotation.swapaxes(-1, -2)), free)

    def _split(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Matrices [..., K, n, n] and numbers [..., m] of coordinates [..., size]."""
        n_coordinates = math.prod(self.shape)
        A, free = vectors[..., :n_coordinates], vectors[..., n_coordinates:]
        return A.reshape(*A.shape[:-1], *self.shape), free

    def _joined(self, A: FloatArray, free: FloatArray) -> FloatArray:
        return np.concatenate([A.reshape(*free.shape[:-1], -1), free], axis=-1)
