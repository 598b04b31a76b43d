"""Memory and time of a piece of work: what the kernel and the GPU say, not what we believe."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")


@dataclass
class Reading:
    """Filled when the work is done: seconds on the wall and of the CPU, and bytes.

    ``peak_memory`` is the growth of resident memory at its peak; None where the kernel does not
    tell (no /proc). On the CPU the others are None: ``gpu_peak_memory`` is what torch gave to
    tensors at its peak, ``gpu_reserved_memory`` what its allocator held for that, and
    ``gpu_device_memory`` what is in use on the whole device at the end, by everybody, with the CUDA
    context; None without nvidia-ml-py.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory: int | None = None
    gpu_peak_memory: int | None = None
    gpu_reserved_memory: int | None = None
    gpu_device_memory: int | None = None


@contextmanager
def metered(device: str) -> Iterator[Reading]:
    """Meter the body, which must have been warmed up: first calls page libraries in.

    The garbage collector stands still meanwhile.
    """
    reading = Reading()
    before = _reset_peak_memory()
    _reset_gpu(device)
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield reading
        _synchronise(device)
        reading.seconds = time.perf_counter() - wall
        reading.cpu_seconds = time.process_time() - cpu
    finally:
        gc.enable()
    if before is not None:
        reading.peak_memory = max(0, _status("VmHWM") - before)
    _read_gpu(device, reading)


def device_memory() -> int | None:
    """Bytes in use on the GPU, by everybody; None without nvidia-ml-py. Makes no CUDA context."""
    try:
        import torch

        return torch.cuda.device_memory_used(0)
    except (ImportError, RuntimeError, AssertionError):
        return None


def _reset_peak_memory() -> int | None:
    """Set the peak back to now and return now's resident bytes.

    Free heap goes back to the system first: else a fit reuses what an earlier one left and seems
    to need nothing.
    """
    if not (PROC / "clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _reset_gpu(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def _synchronise(device: str) -> None:
    """Wait for the GPU: its work is done when it has finished, not when it was asked for."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _read_gpu(device: str, reading: Reading) -> None:
    if device == "cuda":
        import torch

        reading.gpu_peak_memory = torch.cuda.max_memory_allocated()
        reading.gpu_reserved_memory = torch.cuda.max_memory_reserved()
        reading.gpu_device_memory = device_memory()
