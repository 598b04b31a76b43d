"""Real tables that come with scikit-learn: nothing is downloaded, the truth is unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, PositiveInt, validate_call
from sklearn import datasets

from embench.datasets.splitting import Seed, Share, split
from embench.types import Dataset


@validate_call
def iris(
    seed: Seed,
    *,
    n_components: PositiveInt = 3,
    test_share: Share = 0.25,
    standardize: bool = True,
) -> Dataset:
    """Iris: 150 flowers, 4 lengths, 3 species, two of which overlap (Fisher, 1936).

    >>> iris(0).X_train.shape
    (112, 4)
    """
    return _bundled(datasets.load_iris, seed, n_components, test_share, standardize)


@validate_call
def wine(
    seed: Seed,
    *,
    n_components: PositiveInt = 3,
    test_share: Share = 0.25,
    standardize: bool = True,
) -> Dataset:
    """Wine: 178 wines, 13 chemical measurements, 3 cultivars (Forina et al., 1988).

    >>> wine(0).X_train.shape
    (134, 13)
    """
    return _bundled(datasets.load_wine, seed, n_components, test_share, standardize)


@validate_call
def breast_cancer(
    seed: Seed,
    *,
    n_components: PositiveInt = 2,
    test_share: Share = 0.25,
    standardize: bool = True,
) -> Dataset:
    """Breast cancer: 569 tumours, 30 correlated measurements, 2 diagnoses (Street et al., 1993).

    >>> breast_cancer(0).X_train.shape
    (427, 30)
    """
    return _bundled(datasets.load_breast_cancer, seed, n_components, test_share, standardize)


@validate_call
def digits(
    seed: Seed,
    *,
    n_features: Annotated[int, Field(ge=1, le=61)] = 16,
    n_components: PositiveInt = 10,
    test_share: Share = 0.25,
    standardize: bool = False,
) -> Dataset:
    """Digits: 1797 handwritten digits of 8 x 8 pixels, on their first principal components.

    Some pixels are always blank, so a density of all 64 does not exist; 61 axes vary. The axes are
    found without labels on the whole table.

    >>> digits(0).X_train.shape
    (1348, 16)
    """
    from sklearn.decomposition import PCA

    X, y = datasets.load_digits(return_X_y=True)
    X = PCA(n_features, svd_solver="full").fit_transform(X)
    return split(
        X, y, seed, n_components=n_components, test_share=test_share, standardize=standardize
    )


@validate_call
def diabetes(
    seed: Seed,
    *,
    n_components: PositiveInt = 3,
    test_share: Share = 0.25,
    standardize: bool = True,
) -> Dataset:
    """Diabetes: 442 patients, 10 measurements; how far it has gone a year on (Efron et al., 2004).

    A conditional task: the progression, a number from 25 to 346, is the target. It is scaled as
    the measurements are, so that an NLL of 1.42 nat is that of knowing nothing but its mean and
    variance.

    >>> diabetes(0).X_train.shape, diabetes(0).Y_train.shape
    ((332, 10), (332, 1))
    """
    X, Y = datasets.load_diabetes(return_X_y=True, scaled=False)
    return split(
        X,
        None,
        seed,
        targets=Y[:, None],
        n_components=n_components,
        test_share=test_share,
        standardize=standardize,
    )


def _bundled(
    loader: Callable[..., Any], seed: int, n_components: int, test_share: float, standardize: bool
) -> Dataset:
    X, y = loader(return_X_y=True)
    return split(
        X, y, seed, n_components=n_components, test_share=test_share, standardize=standardize
    )
