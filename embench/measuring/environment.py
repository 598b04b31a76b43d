"""Where a number was measured: machine, versions, threads."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embench.measuring.threads import THREAD_VARIABLES, blas, threads_in_force

PACKAGES = ("embench", "numpy", "scipy", "scikit-learn", "torch")

VARIABLES = (
    *THREAD_VARIABLES,
    "OMP_PROC_BIND",
    "OPENBLAS_CORETYPE",
    "MKL_CBWR",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Environment variables that decide how fast, or to which last digit, libraries compute."""


def describe(device: str = "cpu") -> dict[str, Any]:
    """The environment of a record: machine and versions, the threads in force now, the GPU used.

    The GPU is only asked for its name where it is used: asking initialises CUDA.
    """
    pinned = sorted(os.sched_getaffinity(0))
    found = {**_machine(), "blas": ", ".join(blas()), "blas_threads": threads_in_force()}
    found["pinned_to"] = ",".join(map(str, pinned)) if len(pinned) < found["cores"] else ""
    return {**found, **_gpu()} if device == "cuda" else found


@cache
def _machine() -> dict[str, Any]:
    return {
        "host": _host(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "variables": " ".join(f"{name}={os.environ[name]}" for name in _set_variables()),
        "commit": _commit(),
    }


def _host() -> str:
    """A digest that tells machines apart and names none."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _set_variables() -> list[str]:
    return [name for name in VARIABLES if os.environ.get(name)]


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


def _gpu() -> dict[str, Any]:
    import torch

    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
