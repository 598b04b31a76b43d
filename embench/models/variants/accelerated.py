"""EM's steps made longer, shorter or better aimed: the same optimum for fewer passes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from embench.models.engine import IllDefinedCovariance, Parameters, Samples
from embench.models.steps import MixtureByEM, Run
from embench.models.variants.coordinates import to_parameters, to_vector
from embench.types import FloatArray

NOISE = 512.0
"""In units of the precision: a mean log-likelihood that is lower by less has not fallen."""

LONGER = 4.0
"""Factor on the longest step of SQUAREM when it was taken, and its inverse when it failed
(``mstep`` of Varadhan and Roland)."""

INDEPENDENT = 1e-10
"""Singular values of the last changes that are smaller, relative to the largest, count as zero:
nothing can be learnt along them but rounding."""


@dataclass(frozen=True)
class Evaluation:
    """EM's map at one mixture: what an E-step tells, and an M-step makes of it."""

    parameters: Parameters
    image: Parameters
    log_likelihood: float
    x: FloatArray
    change: FloatArray

    @property
    def image_x(self) -> FloatArray:
        """The image as a vector."""
        return self.x + self.change


class AcceleratedEM(MixtureByEM):
    """Variants that count how often they evaluate EM's map, and never let the likelihood fall.

    A step ends at a mixture whose log-likelihood is known, because EM's map was evaluated there
    too: that evaluation is the first of the next step. Where a mixture aimed at turns out worse
    than the one before, the step ends where EM's would. A ``reg_covar`` so large that EM's own
    steps lower the likelihood leaves little else than such steps, at twice their price.
    """

    n_evaluations_: int

    def _fitting(
        self, X: FloatArray, sample_weight: FloatArray | None
    ) -> tuple[Samples, Iterator[Run]]:
        fitting = super()._fitting(X, sample_weight)
        self.n_evaluations_ = 0
        return fitting

    def _evaluated(self, samples: Samples, parameters: Parameters) -> Evaluation:
        """EM's map at a mixture."""
        self.n_evaluations_ += 1
        log_likelihood, image = samples.em_step(parameters, self.reg_covar)
        x = to_vector(parameters, samples.family)
        change = to_vector(image, samples.family) - x
        return Evaluation(parameters, image, float(log_likelihood), x, change)

    def _aimed(self, samples: Samples, x: FloatArray, before: Evaluation) -> Evaluation | None:
        """EM's map at ``x``, or None where the likelihood is lower there than ``before``."""
        slack = NOISE * samples.arrays.eps * max(1.0, abs(before.log_likelihood))
        try:
            with np.errstate(all="ignore"):  # far out, numbers may be too large: not higher, then
                parameters = to_parameters(x, before.parameters, samples.family)
                there = self._evaluated(samples, parameters)
        except (IllDefinedCovariance, np.linalg.LinAlgError):
            return None
        finite = np.isfinite(there.change).all()
        return there if finite and there.log_likelihood >= before.log_likelihood - slack else None


class SquaremEM(AcceleratedEM):
    """EM with squared extrapolation (SQUAREM): two EM steps tell how far to go in one.

    With two EM steps from x in free coordinates (centred log weights, means, log-Cholesky factors),
    r = F(x) - x and v = F(F(x)) - F(x) - r, the step goes to

        x + 2 a r + a^2 v,   a = min(max(1, |r| / |v|), longest),

    where ``longest`` is multiplied by four each time it is reached and divided by four when it
    failed; a = 1 is two EM steps. An iteration costs two evaluations of EM's map, three where the
    log-likelihood at the new mixture is lower than after one EM step: the mixture is then that
    after two.

    Leaves out the EM step with which the authors end each extrapolation: the next one begins with
    it. ``tol`` bounds what an iteration gains, which is more than an EM step does.

    Parameters are those of `em`. ``n_evaluations_`` is the number of evaluations of EM's map, of
    all restarts together.

    Source:
        Varadhan and Roland (2008), Simple and globally convergent methods for accelerating the
        convergence of any EM algorithm, Scandinavian Journal of Statistics 35(2), scheme S3 of
        section 4 and table 1.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> SquaremEM(n_components=2, tol=1e-9, random_state=0).fit(X).converged_
        True
    """

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        here, longest = self._evaluated(samples, parameters), 1.0
        while True:
            middle = self._evaluated(samples, here.image)
            r, bend = here.change, middle.change - here.change
            length = min(max(1.0, _ratio(r, bend)), longest)
            x = here.x + 2 * length * r + length**2 * bend
            there = self._aimed(samples, x, middle) if length > 1 else None
            if length == longest:
                longest = max(1.0, longest * (LONGER if there or length == 1 else 1 / LONGER))
            there = there or self._evaluated(samples, middle.image)
            yield here.log_likelihood, there.parameters
            here = there


class AndersonEM(AcceleratedEM):
    """EM with Anderson acceleration: aims where the last few EM steps together point.

    With f = F(x) - x in free coordinates (centred log weights, means, log-Cholesky factors), and
    the changes dX and dF of x and f over the last iterations as columns,

        x' = x + f + j,   j = -(dX + dF) c,   c = argmin |f - dF c|.

    An iteration costs one evaluation of EM's map, and two where the log-likelihood at x' is lower
    than at x: x' is then F(x), and the memory of earlier steps is empty. Near a saddle, where EM
    moves faster with every step, the same formula leads back into it: x' then lies behind x as EM
    sees it, (f + j) f < 0, and the jump is taken the other way round, -j.

    Leaves out the damping of DAAREM: singular values below 1e-10 of the largest are ignored.
    ``tol`` bounds what an iteration gains, which is more than an EM step does.

    Args:
        memory: Number of earlier changes to learn from, at least 1.

    The others are those of `em`. ``n_evaluations_`` is the number of evaluations of EM's map, of
    all restarts together.

    Source:
        Henderson and Varadhan (2019), Damped Anderson acceleration with restarts and monotonicity
        control for accelerating EM and EM-like algorithms, Journal of Computational and Graphical
        Statistics 28(4), section 2; Walker and Ni (2011), eq. 2.2 and 2.3.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> AndersonEM(n_components=2, tol=1e-9, random_state=0).fit(X).converged_
        True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **AcceleratedEM._parameter_constraints,
        "memory": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_components: int = 1, *, memory: int = 10, **common: Any) -> None:
        super().__init__(n_components, **common)
        self.memory = memory

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        here = self._evaluated(samples, parameters)
        changes: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=self.memory)
        while True:
            there = None
            if changes:
                there = self._aimed(samples, here.image_x + _jump(changes, here.change), here)
            if there is None:
                changes.clear()
                there = self._evaluated(samples, here.image)
            changes.append((there.x - here.x, there.change - here.change))
            yield here.log_likelihood, there.parameters
            here = there


class OverRelaxedEM(AcceleratedEM):
    """EM with adaptive over-relaxation: steps grow while the likelihood rises.

    In free coordinates (centred log weights, means, log-Cholesky factors) an iteration goes from x
    to x + eta (F(x) - x). Where the log-likelihood does not fall, eta is multiplied by ``growth``;
    where it falls, the step is EM's, eta = 1, and growing begins anew. An iteration costs one
    evaluation of EM's map, and two where a step failed.

    Saves less than `squarem-em` and `anderson-em`: steps that suit slow directions are too long
    for fast ones. ``tol`` bounds what an iteration gains, which is more than an EM step does.

    Args:
        growth: Factor on the length of the step after each that succeeded, above 1.

    The others are those of `em`. ``n_evaluations_`` is the number of evaluations of EM's map, of
    all restarts together.

    Source:
        Salakhutdinov and Roweis (2003), Adaptive overrelaxed bound optimization methods, ICML,
        section 3.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> OverRelaxedEM(n_components=2, random_state=0).fit(X).converged_
        True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **AcceleratedEM._parameter_constraints,
        "growth": [Interval(Real, 1, None, closed="neither")],
    }

    def __init__(self, n_components: int = 1, *, growth: float = 1.1, **common: Any) -> None:
        super().__init__(n_components, **common)
        self.growth = growth

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        here, eta = self._evaluated(samples, parameters), 1.0
        while True:
            there = self._aimed(samples, here.x + eta * here.change, here) if eta > 1 else None
            eta = eta * self.growth if there or eta == 1 else 1.0
            there = there or self._evaluated(samples, here.image)
            yield here.log_likelihood, there.parameters
            here = there


class NaturalGradientEM(AcceleratedEM):
    """EM with a natural-gradient step size: a share of the way in expectation parameters.

    With the expectation parameters m of a mixture (per component the weight and the weighted first
    and second moments) and those that an E-step finds in the samples, m(samples | mixture),

        m' = (1 - step) m + step m(samples | mixture),

    the natural-gradient ascent of the log-likelihood, which is mirror descent too. The likelihood
    never falls for a step in (0, 1]; step 1 is EM. For comparison with methods that need small
    steps: with all samples at once, smaller steps are slower, and ``tol`` ends them earlier,
    because they gain less.

    Args:
        step: Share of EM's step in expectation parameters, in (0, 1].

    The others are those of `em`. ``n_evaluations_`` is the number of evaluations of EM's map, of
    all restarts together.

    Source:
        Kunstner, Kumar and Schmidt (2021), Homeomorphic-invariance of EM: non-asymptotic
        convergence in KL divergence for exponential families via mirror descent, AISTATS,
        section 3.

    Example:
        >>> X = np.array([[1.0], [3.0]])
        >>> start = dict(weights_init=[1.0], means_init=[[0.0]], precisions_init=[[[1.0]]])
        >>> model = NaturalGradientEM(step=0.25, **start)
        >>> [round(model.means_.item(), 6) for _ in zip(range(3), model.iter_fit(X))]
        [0.0, 0.5, 0.875]
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **AcceleratedEM._parameter_constraints,
        "step": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(self, n_components: int = 1, *, step: float = 0.5, **common: Any) -> None:
        super().__init__(n_components, **common)
        self.step = step

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        while True:
            self.n_evaluations_ += 1
            found = samples.e_step(parameters)
            old = samples.expected(parameters, self.reg_covar)
            mixed = samples.family.combine(found.scaled(self.step), old, 1 - self.step)
            parameters = samples.m_step(mixed, parameters, self.reg_covar)
            yield float(found.log_likelihood), parameters


def _ratio(r: FloatArray, bend: FloatArray) -> float:
    """|r| / |v|, or 1 where EM goes straight on."""
    straight = float(np.linalg.norm(bend))
    return float(np.linalg.norm(r)) / straight if straight else 1.0


def _jump(changes: deque[tuple[FloatArray, FloatArray]], change: FloatArray) -> FloatArray:
    """From where EM's step ends to where the last ones point: j of `AndersonEM`."""
    dX, dF = (np.stack(columns, axis=-1) for columns in zip(*changes, strict=True))
    coefficients = np.linalg.lstsq(dF, change, rcond=INDEPENDENT)[0]
    jump = -(dX + dF) @ coefficients
    return jump if (change + jump) @ change >= 0 else -jump
