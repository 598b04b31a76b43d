"""Directions of ascent on a manifold: steepest, conjugate, and L-BFGS."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from embench.models.gradient.formulations import Evaluation
from embench.models.gradient.manifold import Manifold
from embench.types import FloatArray

STEEP, LESS_STEEP = 0.9, 0.4
"""Wolfe's second condition: the share of the slope that a step may leave (Nocedal and Wright, 2006,
section 3.1). Steps of L-BFGS are well scaled; for directions that are not, 0.1 was measured to cost
a third more E-steps."""

MEMORY = 10
"""How many changes of point and gradient L-BFGS learns from."""

CURVED = 1e-8
"""Changes along which the likelihood bends by less, relative to that of EM's complete data, tell
L-BFGS nothing but rounding, or that it bends the wrong way."""


class Solver:
    """Steepest descent: EM's step to first order, and as long as the line search will have it."""

    steepness: ClassVar[float] = LESS_STEEP

    def direction(self, here: Evaluation) -> FloatArray:
        """Where to go, as coordinates [size]; the first trial is all the way."""
        return -here.scale * here.gradient

    def learn(self, manifold: Manifold, here: Evaluation, there: Evaluation) -> None:
        """Take note of a step."""


class ConjugateGradient(Solver):
    """By the rule of Hestenes and Stiefel, that begins anew where it points uphill."""

    def __init__(self) -> None:
        self.last: FloatArray | None = None
        self.before: FloatArray | None = None

    def direction(self, here: Evaluation) -> FloatArray:
        self.last = steepest = super().direction(here)
        if self.before is not None:
            gradient, direction = self.before
            change = here.gradient - gradient
            beta = -(steepest @ change) / (direction @ change)
            mixed = steepest + max(0.0, beta) * direction
            self.last = mixed if mixed @ here.gradient < 0 else steepest
        return self.last

    def learn(self, manifold: Manifold, here: Evaluation, there: Evaluation) -> None:
        assert self.last is not None
        vectors = [here.gradient, self.last]
        self.before = manifold.transported(here.point, there.point, vectors)[1:]


class LBFGS(Solver):
    """Limited-memory BFGS, with changes that go along from point to point.

    Begins with EM's scale, lengthened or shortened as the last change asks (Nocedal and Wright,
    2006, eq. 7.20 in that metric).
    """

    steepness = STEEP

    def __init__(self) -> None:
        self.pairs: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=MEMORY)

    def direction(self, here: Evaluation) -> FloatArray:
        q, shares = here.gradient.copy(), []
        for step, change in reversed(self.pairs):
            shares.append((step @ q) / (step @ change))
            q -= shares[-1] * change
        r = here.scale * q
        if self.pairs:
            step, change = self.pairs[-1]
            r *= (step @ change) / (change @ (here.scale * change))
        for (step, change), share in zip(self.pairs, reversed(shares), strict=True):
            r += (share - (change @ r) / (step @ change)) * step
        return -r

    def learn(self, manifold: Manifold, here: Evaluation, there: Evaluation) -> None:
        vectors = [here.gradient, *(vector for pair in self.pairs for vector in pair)]
        step, gradient, *learnt = manifold.transported(here.point, there.point, vectors)
        self.pairs.clear()
        self.pairs.extend(zip(learnt[::2], learnt[1::2], strict=True))
        change = there.gradient - gradient
        if step @ change > CURVED * (step @ (step / there.scale)):
            self.pairs.append((step, change))


SOLVERS = {"lbfgs": LBFGS, "cg": ConjugateGradient, "gradient": Solver}
