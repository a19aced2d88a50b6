"""What a figure was measured with: printed above every table."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numba
import torch

ROOT = Path(__file__).resolve().parent.parent


def describe() -> str:
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown CPU")
    flags = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    vector = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return (
        f"{cpu} ({vector}), {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {numba.__version__}, commit {_commit()}"
    )


def command() -> str:
    """The command, its paths as seen from the checkout: a table says nothing of whose machine made it."""
    return "python " + " ".join(argument.replace(f"{ROOT}/", "") for argument in sys.argv)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip() or "none"
