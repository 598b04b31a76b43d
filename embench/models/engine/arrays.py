"""NumPy arrays or torch tensors: the little that is not spelled alike in both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from embench.types import FloatArray

CHUNK_BYTES, GPU_CHUNK_BYTES = 2**22, 2**28
"""Working memory of one chunk. On a CPU a share of the last-level cache, measured: smaller ones pay
for calls, larger ones for memory, both by a tenth at a factor of four. A GPU wants few launches."""


@dataclass(frozen=True)
class Arrays:
    """A library, a precision and a device, and the scratch memory that passes use again."""

    xp: ModuleType
    dtype: str
    device: str = "cpu"
    _scratch: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def on(cls, device: str, dtype: str) -> Arrays:
        """NumPy on the CPU, torch on everything else."""
        if device == "cpu":
            return cls(np, dtype)
        import torch

        return cls(torch, dtype, device)

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def room(self, numbers: int) -> int:
        """How many rows of so many numbers make a chunk."""
        chunk_bytes = CHUNK_BYTES if self.device == "cpu" else GPU_CHUNK_BYTES
        return chunk_bytes // (numbers * self.itemsize)

    def empty(self, *shape: int) -> Any:
        return self.xp.empty(shape, dtype=getattr(self.xp, self.dtype), device=self.device)

    def of(self, array: FloatArray) -> Any:
        """A NumPy array in this library, precision and place."""
        return self.xp.asarray(
            np.asarray(array, order="C"), dtype=getattr(self.xp, self.dtype), device=self.device
        )

    def scratch(self, name: str, *shape: int) -> Any:
        """Memory of this shape with anything in it, the same at every call.

        New memory for each chunk would cost a page fault for every 4 KiB of it.
        """
        size = math.prod(shape)
        if name not in self._scratch or len(self._scratch[name]) < size:
            self._scratch[name] = self.empty(size)
        return self._scratch[name][:size].reshape(shape)


def to_numpy(array: Any) -> FloatArray:
    """A float64 NumPy array."""
    on_cpu = array if isinstance(array, np.ndarray | np.generic) else array.cpu().numpy()
    return np.asarray(on_cpu, dtype=np.float64)
