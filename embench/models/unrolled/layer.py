"""EM as a layer of a network: unrolled steps, each with a learned correction."""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from embench.models.unrolled.em_map import Mixtures, Samples, check, e_step, em_map, framed
from embench.models.unrolled.implicit import Gradient, Step, iterate

LARGEST = 5.0
"""Most by which one correction moves any number: a mean by five standard deviations of the data, a
width by 148 times. No iteration needs more, and float32 does not overflow, whatever is learned."""

LEAST = -50.0
"""Least log-weight that the network is told of: a weight may be 0, a number it sees not -inf."""


class Clustering(NamedTuple):
    """What the layer makes of B datasets: ``responsibilities`` [B, N, K], of which the rows sum to
    1, or to 0 where there is no sample; ``parameters``, the mixtures, with ``logits``, ``means``
    [u] and ``covariances`` [u^2]; ``log_likelihood`` [B], a sum over samples [nat]."""

    responsibilities: Tensor
    parameters: Mixtures
    log_likelihood: Tensor


class EMLayer(nn.Module):
    """T steps of EM with full covariances, each followed by a learned correction.

    Every iteration is t <- c(f(t, X)): f is one step of EM, c adds to the mean of each component,
    multiplies its Cholesky factor, L <- L C with C lower triangular of diagonal exp(.), and, if
    asked to, adds to its logit, by a small network that all components share. The network sees the
    component after the step, what the step has changed, and the mean of what it makes of all
    components, so that their order plays no part; that of the samples plays none in EM. Its last
    layer begins at zero: an untrained layer is EM, to the last digit.

    Everything happens in the frame of each dataset, centred and whitened by its Cholesky factor:
    data shifted, scaled or sheared feature by feature give the shifted, scaled and sheared mixture,
    trained or not; under rotations that holds for an untrained layer alone. Leaves out other
    covariance families and higher derivatives. On one dataset such a layer ties EM or finds
    another optimum: it earns its keep trained over many datasets, for few steps.

    Args:
        n_features: Of the data.
        n_components: Of the learnable start; a start that is given may have any number.
        n_steps: T >= 1.
        hidden: Width of the network; None for no corrections.
        shared: One network for all iterations, instead of one for each.
        correct_logits: Whether logits are corrected, too.
        gradient: "unroll", "truncated" (to ``n_last`` steps), "one-step" or "implicit", as in
            `embench.models.unrolled.implicit.fit_em`; the last wants equal steps, and only the
            first learns a start.
        n_last: See there.
        reg_covar: Added to the variances of X by every EM step [u^2]. Corrections do not narrow a
            component below it: no density grows to infinity.
        random_state: Seed, or a generator on the CPU, of the start and of the networks.
        device, dtype: As of any torch module.

    Raises:
        ValueError: A size is not positive, or "implicit" meets steps that are not equal.

    Source:
        A published demonstration, made safe for batches; Monga, Li and Eldar (2021), Algorithm
        unrolling, for the idea; Zaheer et al. (2017), Deep sets, eq. 4, for the network.

    Example:
        >>> layer = EMLayer(n_features=2, n_components=3, n_steps=5, random_state=0)
        >>> X = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> found = layer(X)
        >>> found.responsibilities.shape, found.parameters.covariances.shape
        (torch.Size([4, 100, 3]), torch.Size([4, 3, 2, 2]))
        >>> (-found.log_likelihood.mean()).backward()
    """

    def __init__(
        self,
        n_features: int,
        n_components: int,
        n_steps: int = 5,
        *,
        hidden: int | None = 32,
        shared: bool = False,
        correct_logits: bool = False,
        gradient: Gradient = "unroll",
        n_last: int = 1,
        reg_covar: float = 1e-6,
        random_state: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "n_features": n_features,
            "n_components": n_components,
            "n_steps": n_steps,
            "n_last": n_last,
            "hidden": hidden,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"expected {name} >= 1, got {size}")
        if gradient not in get_args(Gradient):
            raise ValueError(
                f"expected gradient to be one of {get_args(Gradient)}, got {gradient!r}"
            )
        if gradient == "implicit" and hidden is not None and not shared:
            raise ValueError(
                "gradient='implicit' is that of a fixed point, which only equal steps have: use "
                "shared=True, hidden=None or another gradient"
            )
        self.n_features, self.n_components, self.n_steps = n_features, n_components, n_steps
        self.gradient: Gradient = gradient
        self.n_last, self.reg_covar = n_last, reg_covar
        generator = generator_of(random_state)
        start = torch.zeros(n_components, _n_numbers(n_features), dtype=torch.float64)
        # Means as far apart as samples are: nearly equal ones take EM many steps to part.
        start[:, 1 : 1 + n_features].normal_(generator=generator)
        start[:, 1 + n_features : 1 + 2 * n_features] = -math.log(n_components) / n_features
        self.start = nn.Parameter(start.to(device=device, dtype=dtype or torch.get_default_dtype()))
        self.corrections = nn.ModuleList()
        if hidden is not None:
            for _ in range(1 if shared else n_steps):
                self.corrections.append(
                    Correction(n_features, hidden, correct_logits, generator).to(self.start)
                )

    def forward(
        self, X: Tensor, start: Mixtures | None = None, mask: Tensor | None = None
    ) -> Clustering:
        """Cluster each of B datasets.

        Args:
            X: Shape [B, n_samples, n_features] [u].
            start: Where the first step begins, in units of X; the learnable start by default.
            mask: Boolean, [B, n_samples], False where there is no sample: sets of unequal size.

        Returns:
            A `Clustering` in units of X. Scaling X by c shifts the log-likelihood by
            -n_samples * n_features * log(c).

        Raises:
            ValueError: A shape or a dtype is not as above, a dataset has no samples, or a
                covariance became singular.
        """
        check(X, self.start.dtype, start, mask)
        if X.shape[-1] != self.n_features:
            raise ValueError(
                f"expected X of shape [B, n_samples, n_features = {self.n_features}], got "
                f"{tuple(X.shape)}"
            )
        samples = framed(X, mask, self.reg_covar)
        begin = self.begin(len(X)) if start is None else samples.inward(start)
        log_likelihood, resp, fitted = self.unrolled(samples, begin)
        return Clustering(resp.mT, samples.outward(fitted), log_likelihood)

    def begin(self, n_datasets: int) -> Mixtures:
        """The learnable start, in the frame of every dataset."""
        D = self.n_features
        zeros = self.start.new_zeros(n_datasets, self.n_components, D + 1)
        identity = torch.eye(D, dtype=zeros.dtype, device=zeros.device)
        standard = Mixtures(
            zeros[..., 0], zeros[..., 1:], identity.expand(*zeros.shape[:2], -1, -1)
        )
        return _moved(standard, self.start.expand(n_datasets, -1, -1), zeros.new_zeros(()))

    def unrolled(self, samples: Samples, start: Mixtures) -> tuple[Tensor, Tensor, Mixtures]:
        """In the frame: total log-likelihood [B] and responsibilities [B, K, N] of the mixtures
        after all steps, and these."""
        narrowest = math.sqrt(self.reg_covar) / samples.scale.detach().diagonal(0, -2, -1)
        steps = [self._step(samples, narrowest[:, None], t) for t in range(self.n_steps)]
        fitted = iterate(steps, start, self.gradient, self.n_last)
        return *e_step(samples, fitted), fitted

    def _step(self, samples: Samples, narrowest: Tensor, t: int) -> Step:
        """One EM step and its correction."""

        def step(before: Mixtures) -> Mixtures:
            _, after = em_map(samples, before, self.reg_covar)
            if not self.corrections:
                return after
            correction = self.corrections[min(t, len(self.corrections) - 1)]
            return correction(before, after, narrowest)

        return step


class Correction(nn.Module):
    """A move of each component of a mixture, by a network that all components share.

    h_k = silu(A x_k), context = mean_k h_k, move_k = C silu(B [h_k, context]), where x_k are the
    component's numbers in the frame and what the EM step has changed in them. C begins at 0.

    Args:
        n_features, hidden, correct_logits: As of `EMLayer`.
        generator: For A and B.
    """

    def __init__(
        self, n_features: int, hidden: int, correct_logits: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        n_numbers = _n_numbers(n_features)
        self.correct_logits = correct_logits
        self.enter = linear_layer(2 * n_numbers, hidden, generator)
        self.mix = linear_layer(2 * hidden, hidden, generator)
        self.leave = linear_layer(hidden, n_numbers - (not correct_logits), None)

    def forward(self, before: Mixtures, after: Mixtures, narrowest: Tensor) -> Mixtures:
        """Move the mixtures that a step has made of those before; ``narrowest`` [B, 1, D]: no
        correction narrows a component below."""
        numbers = _numbers(after)
        seen = torch.cat([numbers, numbers - _numbers(before)], dim=-1)
        own = nn.functional.silu(self.enter(seen))
        context = own.mean(-2, keepdim=True).expand_as(own)
        move = self.leave(nn.functional.silu(self.mix(torch.cat([own, context], dim=-1))))
        if not self.correct_logits:
            move = nn.functional.pad(move, (1, 0))
        return _moved(after, move, narrowest)


def _n_numbers(n_features: int) -> int:
    """Of a component: logit, mean, and Cholesky factor."""
    return 1 + n_features + n_features * (n_features + 1) // 2


def _numbers(mixtures: Mixtures) -> Tensor:
    """[B, K, n_numbers]: log-weight, mean, logarithms of the diagonal, and what is below it."""
    D = mixtures.means.shape[-1]
    rows, columns = torch.tril_indices(D, D, -1, device=mixtures.means.device)
    return torch.cat(
        [
            mixtures.logits.log_softmax(-1).clamp(min=LEAST)[..., None],
            mixtures.means,
            mixtures.scale_tril.diagonal(0, -2, -1).log(),
            mixtures.scale_tril[..., rows, columns],
        ],
        dim=-1,
    )


def _moved(mixtures: Mixtures, move: Tensor, narrowest: Tensor) -> Mixtures:
    """The mixtures after a move [B, K, n_numbers]; one of 0 changes no digit."""
    D = mixtures.means.shape[-1]
    bounded = LARGEST * torch.tanh(move / LARGEST)
    logits, means, factor = bounded.split([1, D, D * (D + 1) // 2], dim=-1)
    # No narrower than the narrowest, or than it has been.
    room = narrowest.log() - mixtures.scale_tril.detach().diagonal(0, -2, -1).log()
    widths = torch.maximum(factor[..., :D], room.clamp(max=0))
    shear = torch.diag_embed(widths.exp())
    rows, columns = torch.tril_indices(D, D, -1, device=move.device)
    shear[..., rows, columns] = factor[..., D:]
    return Mixtures(
        mixtures.logits + logits[..., 0], mixtures.means + means, mixtures.scale_tril @ shear
    )


def generator_of(random_state: int | torch.Generator | None) -> torch.Generator:
    """One of our own: the global one is left alone."""
    if isinstance(random_state, torch.Generator):
        return random_state
    generator = torch.Generator()
    if random_state is None:
        generator.seed()
    else:
        generator.manual_seed(random_state)
    return generator


def linear_layer(n_in: int, n_out: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer of float64, as torch would draw it but by a generator, or of zeros."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float64)
    with torch.no_grad():
        linear.bias.zero_()
        if generator is None:
            linear.weight.zero_()
        else:
            bound = 1 / math.sqrt(n_in)
            linear.weight.uniform_(-bound, bound, generator=generator)
    return linear
