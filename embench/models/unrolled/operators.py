"""EM as an operator that was learned once: any number of samples, features and components."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from embench.models.unrolled.em_map import (
    Mixtures,
    Samples,
    check,
    e_step,
    framed,
    m_step,
    n_products,
)
from embench.models.unrolled.evidence import FAINT, N_FACTS, N_VIEWS, Evidence
from embench.models.unrolled.layer import Clustering, generator_of, linear_layer

Core = Literal["feed-forward", "recurrent"]

TILT = 4.0
"""Most by which a view or a component tilts a log-responsibility [nat], where the view is 1."""

SCALE = 2.0
"""Most by which the logarithm of a step or of a width is changed: a factor of 7."""

IN_CACHE = 2**20
"""Products of features that are worked on at once where no gradient is asked for: 8 MB in float64.
With 8 features 256 datasets side by side took 1.5 times as long as in blocks of 50."""

N_MOVES = 4
"""What a network says to each component: see `moved`."""


class EMOperator(nn.Module):
    """Steps of EM with a learned part, trained over many datasets instead of on one.

    All that the networks see and say is invariant: they look at each component through means of
    log-responsibilities, Mahalanobis distances and log-densities, and answer with numbers that
    tilt responsibilities, scale steps and shrink covariances. Hence one set of weights serves any
    n_samples, n_features and n_components, and data that are shifted, scaled, sheared or rotated
    give the mixture that is shifted, scaled, sheared or rotated. Networks begin at zero: an
    untrained operator is EM.

    - core "feed-forward": a network for each step, without memory, tilts what the E-step says and
      moves what the M-step makes (`FeedForwardStep`).
    - core "recurrent": the E-step is EM's; one recurrent network for all steps makes the next
      mixture of what responsibilities say of the residuals (`RecurrentMStep`).

    Steps after the learned ones are EM's, which goes on from any mixture uphill. Leaves out other
    covariance families and learned starts.

    Args:
        core: See above.
        n_steps: Learned steps, T >= 1.
        hidden: Width of the networks.
        reg_covar: Added to the variances of X by every step [u^2].
        random_state: Seed, or a generator on the CPU, of the networks.

    Raises:
        ValueError: A size is not positive, or the core is none of these.

    Source:
        Monga, Li and Eldar (2021), Algorithm unrolling; Greff, van Steenkiste and Schmidhuber
        (2017), Neural expectation maximization, for the recurrent core; Zaheer et al. (2017), Deep
        sets, eq. 4, for equivariant networks.

    Example:
        >>> operator = EMOperator("feed-forward", n_steps=5, random_state=0)
        >>> X = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> start = Mixtures(X.new_zeros(4, 3), X[:, :3], torch.eye(2).expand(4, 3, 2, 2))
        >>> operator(X, start).responsibilities.shape
        torch.Size([4, 100, 3])
    """

    def __init__(
        self,
        core: Core,
        n_steps: int = 5,
        hidden: int = 32,
        *,
        reg_covar: float = 1e-6,
        random_state: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if core not in get_args(Core):
            raise ValueError(f"expected core to be one of {get_args(Core)}, got {core!r}")
        if n_steps < 1 or hidden < 1:
            raise ValueError(f"expected n_steps >= 1 and hidden >= 1, got {n_steps} and {hidden}")
        self.core, self.n_steps, self.hidden = core, n_steps, hidden
        self.reg_covar = reg_covar
        generator = generator_of(random_state)
        made: list[LearnedStep] = (
            [FeedForwardStep(hidden, generator) for _ in range(n_steps)]
            if core == "feed-forward"
            else [RecurrentMStep(hidden, generator)]
        )
        self.learned = nn.ModuleList(made).to(torch.get_default_dtype())

    @property
    def config(self) -> dict[str, Any]:
        """What makes an operator of the same shape."""
        return {"core": self.core, "n_steps": self.n_steps, "hidden": self.hidden}

    def forward(
        self,
        X: Tensor,
        start: Mixtures,
        mask: Tensor | None = None,
        n_steps: int | None = None,
    ) -> Clustering:
        """Cluster each of B datasets.

        Args:
            X: Shape [B, n_samples, n_features] [u], in the dtype of the operator.
            start: Where the first step begins, in units of X.
            mask: Boolean, [B, n_samples], False where there is no sample: sets of unequal size.
            n_steps: Of all; the learned ones by default. What goes beyond them is EM.

        Raises:
            ValueError: Shapes or dtypes do not agree, ``n_steps`` is negative, or a dataset has no
                samples.
        """
        check(X, next(self.parameters()).dtype, start, mask)
        n_steps = self.n_steps if n_steps is None else n_steps
        if n_steps < 0:
            raise ValueError(f"expected n_steps >= 0, got {n_steps}")
        size = max(1, IN_CACHE // (X.shape[1] * n_products(X.shape[2])))
        if torch.is_grad_enabled() or len(X) <= size or not X.is_cpu:
            return self._forward(X, start, mask, n_steps)
        n_blocks = -(-len(X) // size)
        masks = [None] * n_blocks if mask is None else mask.split(size)
        starts = (Mixtures(*parts) for parts in zip(*(p.split(size) for p in start), strict=True))
        found = [
            self._forward(*block, n_steps)
            for block in zip(X.split(size), starts, masks, strict=True)
        ]
        resp, mixtures, log_likelihood = zip(*found, strict=True)
        joined = Mixtures(*(torch.cat(parts) for parts in zip(*mixtures, strict=True)))
        return Clustering(torch.cat(resp), joined, torch.cat(log_likelihood))

    def _forward(self, X: Tensor, start: Mixtures, mask: Tensor | None, n_steps: int) -> Clustering:
        """All datasets at once."""
        samples = framed(X, mask, self.reg_covar)
        mixtures = samples.inward(start)
        steps = self.steps(samples, mixtures)
        for _ in range(n_steps):
            _, mixtures = next(steps)
        log_likelihood, resp = e_step(samples, mixtures)
        return Clustering(resp.mT, samples.outward(mixtures), log_likelihood)

    def steps(self, samples: Samples, start: Mixtures) -> Iterator[tuple[Tensor, Mixtures]]:
        """In the frame, for ever: the total log-likelihood [B] before each step, and the mixtures
        after it. The first ``n_steps`` steps are learned, the others EM's."""
        mixtures, memory = start, None
        for t in range(self.n_steps):
            step = self.learned[min(t, len(self.learned) - 1)]
            log_likelihood, mixtures, memory = step(samples, mixtures, memory, self.reg_covar)
            yield log_likelihood, mixtures
        while True:
            log_likelihood, resp = e_step(samples, mixtures)
            mixtures = m_step(samples, resp, mixtures, self.reg_covar)
            yield log_likelihood, mixtures


class Memory(NamedTuple):
    """What a recurrent step hands to the next: the network's state [B, K, hidden], and how the
    means have moved, [B, K, D]."""

    state: Tensor
    velocity: Tensor


class LearnedStep(nn.Module, ABC):
    """A step of EM with a learned part."""

    @abstractmethod
    def forward(
        self, samples: Samples, before: Mixtures, memory: Memory | None, reg_covar: float
    ) -> tuple[Tensor, Mixtures, Memory | None]:
        """The total log-likelihood [B] before the step, the mixtures after it, and what the next
        step is to remember; None at the first, and always where nothing is remembered."""


class FeedForwardStep(LearnedStep):
    """An E-step with tilted responsibilities, and an M-step that is not the end of the move.

    log r_nk + v_nk . a_k + b_k, normalised over k, takes the place of log r_nk, where v are the
    views of `Evidence`; then the mixture goes as far as `moved` says. All of it is what a network
    says of each component, from the facts of it and the mean over all.
    """

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.enter = linear_layer(2 * N_FACTS, hidden, generator)
        self.mix = linear_layer(2 * hidden, hidden, generator)
        self.leave = linear_layer(hidden, N_VIEWS + 1 + N_MOVES, None)

    def forward(
        self, samples: Samples, before: Mixtures, memory: Memory | None, reg_covar: float
    ) -> tuple[Tensor, Mixtures, Memory | None]:
        """See `LearnedStep`."""
        evidence = Evidence.of(samples, before)
        own = nn.functional.silu(self.enter(_with_mean(evidence.facts)))
        own = nn.functional.silu(self.mix(_with_mean(own)))
        tilt, moves = self.leave(own).split([N_VIEWS + 1, N_MOVES], dim=-1)
        faintness, nearness, density, bias = _bounded(tilt, TILT).split(1, dim=-1)
        tilted = torch.addcmul(evidence.log_resp, faintness / -FAINT, evidence.faintness)
        tilted = torch.addcmul(tilted + bias, nearness, evidence.nearness)
        tilted = torch.addcmul(tilted, density, evidence.density)
        resp = tilted.softmax(1) * samples.counted[:, None]
        em = m_step(samples, resp, before, reg_covar)
        return evidence.log_likelihood, moved(before, em, moves), None


class RecurrentMStep(LearnedStep):
    """An M-step by a recurrent network, after EM's E-step.

    What responsibilities say of the residuals of each component goes into a GRU that all components
    and all steps share: the facts, and what EM would do: how far the mean would move and how the
    covariance would change, in deviations of the component. Its state decides how far the mixture
    goes (`moved`), and how much of their last step the means repeat.
    """

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.cell = _gru(2 * (N_FACTS + 3), hidden, generator)
        self.leave = linear_layer(hidden, 1 + N_MOVES, None)

    def forward(
        self, samples: Samples, before: Mixtures, memory: Memory | None, reg_covar: float
    ) -> tuple[Tensor, Mixtures, Memory | None]:
        """See `LearnedStep`."""
        evidence = Evidence.of(samples, before)
        em = m_step(samples, evidence.resp, before, reg_covar)
        if memory is None:
            zeros = torch.zeros_like(before.means)
            memory = Memory(zeros[..., :1].expand(-1, -1, self.cell.hidden_size), zeros)
        seen = _with_mean(torch.cat([evidence.facts, _change(before, em)], dim=-1))
        state = self.cell(seen.flatten(0, 1), memory.state.flatten(0, 1))
        state = state.unflatten(0, seen.shape[:2])
        momentum, moves = self.leave(state).split([1, N_MOVES], dim=-1)
        repeated = _bounded(momentum, SCALE) * memory.velocity
        after = moved(before, em, moves, repeated)
        return evidence.log_likelihood, after, Memory(state, after.means - before.means)


def moved(
    before: Mixtures, em: Mixtures, moves: Tensor, repeated: Tensor | None = None
) -> Mixtures:
    """From one mixture by way of what EM makes of it to another; by zeros to EM's.

    Args:
        before, em: Before and after EM's step.
        moves: [B, K, 4], of each component: the logarithm of how much of EM's step its mean
            takes, those of factors of its weight and of its width, and its shrinkage (`shrunk`).
        repeated: What is added to the means, [B, K, D].
    """
    gain, weight, width = _bounded(moves[..., :3], SCALE).split(1, dim=-1)
    means = em.means + gain.expm1() * (em.means - before.means)
    further = Mixtures(
        em.logits + weight[..., 0],
        means if repeated is None else means + repeated,
        em.scale_tril * width.exp()[..., None],
    )
    return shrunk(further, moves[..., 3])


def shrunk(mixtures: Mixtures, shrinkage: Tensor) -> Mixtures:
    """Covariances on their way to their weighted mean: C_k (1 - s_k) + s_k sum_j w_j C_j, with
    s_k = tanh(max(0, shrinkage_k)); [B, K].

    Source:
        Friedman (1989), Regularized discriminant analysis, eq. 16 and 18.
    """
    share = shrinkage.clamp(min=0).tanh()[..., None, None]
    covariances = mixtures.covariances
    pooled = (mixtures.weights[..., None, None] * covariances).sum(1, keepdim=True)
    factors, info = torch.linalg.cholesky_ex(covariances + share * (pooled - covariances))
    # What is barely definite stays as the M-step has made it.
    failed = (info != 0)[..., None, None]
    return mixtures._replace(scale_tril=mixtures.scale_tril.where(failed, factors))


def _change(before: Mixtures, after: Mixtures) -> Tensor:
    """How a step would move each component, [B, K, 3], in its own deviations: the mean, and size
    and volume of the covariance."""
    D = before.means.shape[-1]
    step = (after.means - before.means)[..., None]
    shift = torch.linalg.solve_triangular(before.scale_tril, step, upper=False)[..., 0]
    grown = torch.linalg.solve_triangular(before.scale_tril, after.scale_tril, upper=False)
    return torch.stack(
        [
            torch.log1p(shift.square().sum(-1) / D),
            torch.log1p(grown.square().sum((-2, -1)) / D),
            _bounded(grown.diagonal(0, -2, -1).log().sum(-1) / D, 5.0),
        ],
        dim=-1,
    )


def _with_mean(numbers: Tensor) -> Tensor:
    """[B, K, 2 S] of [B, K, S]: a component's own, and the mean over all components."""
    return torch.cat([numbers, numbers.mean(1, keepdim=True).expand_as(numbers)], dim=-1)


def _bounded(numbers: Tensor, most: float) -> Tensor:
    """The same near 0, and never more than ``most``."""
    return most * torch.tanh(numbers / most)


def _gru(n_in: int, hidden: int, generator: torch.Generator) -> nn.GRUCell:
    """A GRU cell of float64, as torch would draw it but by a generator."""
    cell: nn.GRUCell = nn.utils.skip_init(nn.GRUCell, n_in, hidden, dtype=torch.float64)
    bound = 1 / math.sqrt(hidden)
    with torch.no_grad():
        for part in cell.parameters():
            part.uniform_(-bound, bound, generator=generator)
    return cell
