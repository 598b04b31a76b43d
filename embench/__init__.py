"""embench: which way of fitting a mixture is best for data like mine, and what does it cost?

>>> import embench
>>> model = embench.make_model("em", n_components=3, covariance_type="diag")
>>> data = embench.make_dataset("blobs", seed=0, n_features=8, n_components=3)
>>> model.fit(data.X_train).means_.shape
(3, 8)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embench import datasets as datasets
    from embench import models as models
    from embench.comparing.compare import compare as compare
    from embench.measuring.run import run as run
    from embench.registry import make_dataset as make_dataset
    from embench.registry import make_model as make_model

__version__ = "0.1.0"

# Imported when used: `embench --help` and `embench compare` pay for neither torch nor models.
_HOMES = {
    "make_model": "embench.registry",
    "make_dataset": "embench.registry",
    "run": "embench.measuring.run",
    "compare": "embench.comparing.compare",
}

__all__ = ["__version__", "compare", "datasets", "make_dataset", "make_model", "models", "run"]


def __getattr__(name: str) -> Any:
    if name in ("models", "datasets"):
        return importlib.import_module(f"embench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'embench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
