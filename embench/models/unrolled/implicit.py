"""Gradients through an iteration: all of it, its end, or the fixed point that it has reached."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embench.models.unrolled.em_map import Mixtures, em_map, framed

Step = Callable[[Mixtures], Mixtures]
"""One iteration in the frame of the data."""

Gradient = Literal["unroll", "truncated", "one-step", "implicit"]

RESTS = 1e-3
"""An iteration that moves no number of a mixture by more, in standard deviations of the data or of
a component, is taken to be near its fixed point."""

KRYLOV = 200
"""Largest dimension of the space that GMRES searches. EM's Jacobian has as many eigenvalues as a
mixture has numbers, most of them near 0: ten to thirty dimensions gave ten digits where it was
tried, and a Neumann series wanted 150 to 900 terms."""


def fit_em(
    X: Tensor,
    start: Mixtures,
    n_steps: int,
    *,
    gradient: Gradient = "implicit",
    n_last: int = 1,
    mask: Tensor | None = None,
    reg_covar: float = 1e-6,
) -> Mixtures:
    """EM from a start, as a function of the data that can be differentiated in four ways.

    The value is the same in all of them, the gradient is

    - "unroll": that of the value. Memory grows with ``n_steps``;
    - "truncated": of the last ``n_last`` steps, as if what they begin with did not depend on the
      data;
    - "one-step": of the last one alone;
    - "implicit": of the fixed point t = f(t, X), dt/dX = (I - df/dt)^-1 df/dX, by products with the
      transposed Jacobian of one step (`gmres`). The start has no part in it.

    Leaves out second derivatives of "implicit". The last three do not depend on how many steps
    came before in memory; how much of the gradient the middle two miss is the rate at which EM
    converges there, to the power of the steps kept: little for components that lie apart, most of
    it for components that overlap.

    Args:
        X: Datasets, [B, n_samples, n_features] [u].
        start: Where EM begins, in units of X.
        n_steps: Number of EM steps, >= 1.
        gradient: See above.
        n_last: Steps of "truncated".
        mask: [B, n_samples], False where there is no sample.
        reg_covar: Added to the variances of every component [u^2].

    Returns:
        The mixtures after ``n_steps`` steps, in units of X.

    Raises:
        ValueError: The shapes do not agree, or a number or a name is none of those above.

    Source:
        Bai, Kolter and Koltun (2019), Deep equilibrium models, theorem 1; Bolte, Pauwels and
        Vaiter (2023), One-step differentiation of iterative algorithms.

    Example:
        >>> X = torch.tensor([[[0.0], [1.0], [8.0], [9.0]]], dtype=torch.float64)
        >>> X.requires_grad_()
        tensor([[[0.],...
        >>> start = Mixtures(X.new_zeros(1, 2), X[:, [0, 3]].detach(), X.new_ones(1, 2, 1, 1))
        >>> fit_em(X, start, 20).means[0, 0].backward()
        >>> X.grad.flatten()  # the mean of two samples
        tensor([5.0000e-01, 5.0000e-01, ...
    """
    samples = framed(X, mask, reg_covar)

    def step(mixtures: Mixtures) -> Mixtures:
        return em_map(samples, mixtures, reg_covar)[1]

    return samples.outward(iterate([step] * n_steps, samples.inward(start), gradient, n_last))


def iterate(
    steps: Sequence[Step], start: Mixtures, gradient: Gradient = "unroll", n_last: int = 1
) -> Mixtures:
    """Go through steps, and remember of them what the gradient asks for; see `fit_em`.

    "implicit" takes all steps to be equal to the last.
    """
    if gradient not in get_args(Gradient):
        raise ValueError(f"expected gradient to be one of {get_args(Gradient)}, got {gradient!r}")
    if len(steps) < 1 or n_last < 1:
        raise ValueError(f"expected n_steps >= 1 and n_last >= 1, got {len(steps)} and {n_last}")
    kept = {"unroll": len(steps), "truncated": min(n_last, len(steps))}.get(gradient, 1)
    mixtures = start
    for step in steps[: len(steps) - kept]:
        with torch.no_grad():
            mixtures = step(mixtures)
    if gradient == "implicit":
        return _at_fixed_point(steps[-1], mixtures)
    for step in steps[len(steps) - kept :]:
        mixtures = step(mixtures)
    return mixtures


def gmres(
    product: Callable[[Tensor], Tensor], target: Tensor, tol: float, max_iter: int = KRYLOV
) -> tuple[Tensor, Tensor]:
    """Solve many linear systems A x = b side by side, each in the Krylov space of its own.

    Args:
        product: x -> A x for all systems at once, [B, n] -> [B, n].
        target: b, [B, n].
        tol: Ends when no residual is larger than this, relative to b.
        max_iter: Largest number of products; n of them are enough in exact arithmetic.

    Returns:
        x of shape [B, n], and the residuals relative to b, [B].

    Notes:
        Takes a quarter to a half of the time of `scipy.sparse.linalg.gmres` for one system after
        another, because a product of all systems costs little more than one of one. Keeps a vector
        for every product.

    Source:
        Saad and Schultz (1986), GMRES; Gram-Schmidt twice, as Giraud et al. (2005) advise.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [0.0, 4.0]])
        >>> x, _ = gmres(lambda x: x @ A.mT, torch.tensor([[4.0, 8.0]]), tol=1e-6)
        >>> x.round(decimals=4)
        tensor([[1., 2.]])
    """
    tiny = torch.finfo(target.dtype).tiny
    size = torch.linalg.vector_norm(target, dim=-1)
    n_products = min(max_iter, target.shape[-1])
    basis = [target / size.clamp(min=tiny)[:, None]]
    hessenberg = target.new_zeros(len(target), n_products + 1, n_products)
    wanted = torch.zeros_like(hessenberg[:, :, :1])
    wanted[:, 0, 0] = 1
    for j in range(n_products):
        space, new = torch.stack(basis, dim=-1), product(basis[-1])
        for _ in range(2):
            shares = space.mT @ new[..., None]
            new = new - (space @ shares)[..., 0]
            hessenberg[:, : j + 1, j] += shares[..., 0]
        # Where nothing is left the space holds the solution, and the next direction is none.
        left = torch.linalg.vector_norm(new, dim=-1)
        hessenberg[:, j + 1, j] = left
        basis.append(new / left.clamp(min=tiny)[:, None])
        own = hessenberg[:, : j + 2, : j + 1]
        solution = torch.linalg.pinv(own) @ wanted[:, : j + 2]
        residual = torch.linalg.vector_norm(own @ solution - wanted[:, : j + 2], dim=(-2, -1))
        residual = residual * (size > 0)
        if (residual <= tol).all():
            break
    return (space @ solution)[..., 0] * size[:, None], residual


class _FixedPoint(torch.autograd.Function):
    """The identity, whose backward pass solves for what a fixed point owes to one more step."""

    @staticmethod
    def forward(ctx: Any, solve: Callable[..., Sequence[Tensor]], *parts: Tensor) -> Any:
        ctx.solve = solve
        return tuple(part.view_as(part) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, *ctx.solve(upstream)


def _at_fixed_point(step: Step, near: Mixtures) -> Mixtures:
    """One step from where it hardly moves, with the gradient of the fixed point."""
    inputs = Mixtures(*(part.detach().requires_grad_() for part in near))
    outputs = step(inputs)
    _warn_unless_at_rest(inputs, outputs)
    if not torch.is_grad_enabled():
        return outputs
    shapes = [part.shape[1:] for part in inputs]

    def solve(upstream: Sequence[Tensor]) -> Sequence[Tensor]:
        """u with u = upstream + (d step / d inputs)' u."""

        def product(flat: Tensor) -> Tensor:
            pulled = torch.autograd.grad(outputs, inputs, _parted(flat, shapes), retain_graph=True)
            return flat - _flat(pulled)

        target = _flat(upstream)
        tol = 0.01 * torch.finfo(target.dtype).eps ** 0.5
        solution, residual = gmres(product, target, tol)
        if residual.max() > RESTS:
            warnings.warn(
                f"the implicit gradient is off by {residual.max():.1g} of itself: EM hardly "
                "converges here; use gradient='unroll'",
                RuntimeWarning,
                stacklevel=2,
            )
        return _parted(solution, shapes)

    return Mixtures(*_FixedPoint.apply(solve, *outputs))


def _warn_unless_at_rest(before: Mixtures, after: Mixtures) -> None:
    with torch.no_grad():
        weights = (after.weights - before.weights).abs().max()
        moved = [
            weights,
            *((b - a).abs().max() for a, b in zip(after[1:], before[1:], strict=True)),
        ]
        movement = float(torch.stack(moved).max())
    if not movement <= RESTS:
        warnings.warn(
            f"gradient='implicit' is that of a fixed point, but the last step still moved the "
            f"mixtures by {movement:.1g} standard deviations of the data: take more steps, or "
            "gradient='unroll'",
            RuntimeWarning,
            stacklevel=4,
        )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """[B, n]."""
    return torch.cat([part.flatten(1) for part in parts], dim=-1)


def _parted(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The inverse of `_flat`."""
    parts = flat.split([shape.numel() for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]
