"""From a table of samples to a `Dataset`: seeds, split and scale, the same for all tables."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from embench.types import Dataset, FloatArray, InputError, IntArray

Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


def data_rng(seed: int) -> np.random.Generator:
    """The generator of a seed's data: the first of the children that a seed is parted into."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])


def split(
    X: FloatArray,
    labels: IntArray | None,
    seed: int,
    *,
    targets: FloatArray | None = None,
    n_components: int | None,
    test_share: float,
    standardize: bool,
) -> Dataset:
    """Part a table at random into samples to fit on and samples to be judged on.

    Args:
        X: The table, shape (n_samples, n_features) [u].
        labels: Shape (n_samples,), or None.
        seed: Decides which samples are held out.
        targets: What is to be predicted from X, shape (n_samples, n_targets) [u], or None.
        n_components: How many components to look for, None if unknown.
        test_share: Share of samples held out, in (0, 1).
        standardize: Shift and scale every feature to mean 0 and standard deviation 1 of the
            *training* samples, and targets likewise; what is constant is only shifted. The NLL is
            then that of the scaled data (of the scaled targets, if there are any); add the sum of
            their log standard deviations for the original units.

    Raises:
        InputError: There are too few samples to part.
    """
    n_test = round(test_share * len(X))
    if n_test < 1 or len(X) - n_test < 2:
        raise InputError(
            f"expected enough samples to fit on 2 and hold out 1, got {len(X)} samples and "
            f"test_share={test_share}"
        )
    order = data_rng(seed).permutation(len(X))
    test, train = order[:n_test], order[n_test:]
    if standardize:
        X = _standardised(X, train)
        targets = None if targets is None else _standardised(targets, train)
    return Dataset(
        X_train=X[train],
        X_test=X[test],
        n_components=n_components,
        y_train=None if labels is None else labels[train],
        y_test=None if labels is None else labels[test],
        n_table=len(X),
        Y_train=None if targets is None else targets[train],
        Y_test=None if targets is None else targets[test],
    )


def _standardised(table: FloatArray, train: IntArray) -> FloatArray:
    """Every column with mean 0 and standard deviation 1 over the rows to fit on."""
    # Rounding gives seventeen times 0.1 a standard deviation of 1e-17: ask for the range.
    varies = np.ptp(table[train], axis=0) > 0
    return (table - table[train].mean(axis=0)) / np.where(varies, table[train].std(axis=0), 1.0)
