"""For models whose steps look at single samples and so cannot read them in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from embench.models import streams


def in_memory(X: Any) -> Any:
    """X, where it is an array; a memory-mapped one becomes one in memory.

    Raises:
        ValueError: X is a file, a Dask array or another stream.
    """
    if isinstance(X, np.memmap):
        return np.asarray(X)
    if streams.is_stream(X):
        raise ValueError(streams.NEEDS_MEMORY)
    return X
