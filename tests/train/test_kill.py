"""Promise P4: killed anywhere, a run resumes and ends bit-equal to the straight one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from realloc.record.checkpoint import load_latest
from realloc.record.folder import read_result

ARGS = ["--data", "digits", "--model", "mlp:48,48", "--density", "0.2", "--epochs", "40", "--every", "3", "--seed", "7"]
METHODS = ("rigl", "sparse_evolution", "snfs", "smet", "granet")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "realloc.cli.main", *words]


def environment() -> dict[str, str]:
    return dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1")


def straight(folder: Path, method: str) -> tuple[dict, dict[str, torch.Tensor]]:
    done = subprocess.run(
        command("train", *ARGS, "--method", method, "--out", str(folder), "--json"),
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), final(folder)


def final(folder: Path) -> dict[str, torch.Tensor]:
    latest = load_latest(folder / "checkpoints")
    assert latest is not None
    # global random streams that the run never draws from start differently in every process
    return {name: tensor.clone() for name, tensor in latest.tensors.items() if not name.startswith("random/")}


def killed(folder: Path, method: str, chance: random.Random) -> None:
    """Start a run and kill it some time after its first checkpoint."""
    child = subprocess.Popen(
        command("train", *ARGS, "--method", method, "--out", str(folder)),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((folder / "checkpoints").glob("0*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 1.2))
    child.send_signal(signal.SIGKILL)
    child.wait()


def check(tmp_path: Path, method: str, points: int, seed: int) -> list[int]:
    expected, tensors = straight(tmp_path / "straight", method)
    chance, resumed = random.Random(seed), []
    for point in range(points):
        folder = tmp_path / f"{method}-{point}"
        while True:
            killed(folder, method, chance)
            if read_result(folder) is None:
                break
            folder = tmp_path / f"{method}-{point}-{chance.random()}"  # it finished before the kill: again
        done = subprocess.run(
            command("resume", str(folder), "--json"), env=environment(), capture_output=True, text=True, check=True
        )
        got = json.loads(done.stdout.splitlines()[-1])
        resumed.append(got["resumed_from"])
        assert got["resumed_from"], (method, point, got, done.stderr[-2000:], sorted(p.name for p in folder.iterdir()))
        for key in ("test_loss", "test_accuracy", "held", "parked", "moves", "units_moved", "steps"):
            assert got[key] == expected[key], (method, point, key)
        mine = final(folder)
        assert mine.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(mine[name], tensor), (method, point, name)
    return resumed


def test_a_killed_run_ends_bit_equal(tmp_path):
    check(tmp_path, "rigl", points=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", METHODS)
def test_thirty_kill_points_end_bit_equal(tmp_path, method):
    resumed = check(tmp_path, method, points=6, seed=METHODS.index(method))
    print(f"soak: killed {len(resumed)} times, resumed from steps {sorted(resumed)}, each bit-equal")
