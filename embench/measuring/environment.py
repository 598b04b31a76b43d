"""Where a number was measured: machine, versions, threads."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("embench", "numpy", "scipy", "scikit-learn", "torch")


def describe(device: str = "cpu") -> dict[str, Any]:
    """The environment of a record: machine and versions, the threads in force now, the GPU used.

    The GPU is only asked for its name where it is used: asking initialises CUDA.
    """
    found = {**_machine(), "blas_threads": _blas_threads()}
    return {**found, "gpu": _gpu_name()} if device == "cuda" else found


@cache
def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of embench's own checkout, "-dirty" if changed; empty where it is installed."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _blas_threads() -> int:
    """The largest thread count that any loaded pool would use: verified, not assumed."""
    from threadpoolctl import threadpool_info

    return max((pool["num_threads"] for pool in threadpool_info()), default=1)
