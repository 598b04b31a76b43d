"""What several test files need: the bad models on every path, and a small trial."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before NumPy and torch are imported: tests run side by side, and pools that spin on each
# other's cores take five times as long.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest

from embench.types import Spec, Trial

HERE = str(Path(__file__).parent)
sys.path.append(HERE)
# Child processes find the models of tests/bad_models.py as users' own: by module and class.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), HERE)))


@pytest.fixture
def small_trial():
    """Make a trial that takes milliseconds; fields can be overridden."""

    def make(model="em", *, dataset=("iris", {}), params=None, **fields):
        asked = {"track": "default", "seed": 0, "time_limit": 20.0, **fields}
        return Trial(dataset=Spec(*dataset), model=Spec(model, params or {}), **asked)

    return make
