"""Running arms: what is checked before, and what is not run twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from realloc.compare.apart import finished, run_apart
from realloc.compare.contest import CONTEST, Contest, compare, contest, read
from realloc.compare.demo import demo_contest
from realloc.errors import ConfigError, RecordError
from realloc.train import fashion_mnist
from realloc.train.config import RunConfig, run_config
from realloc.train.progress import Tell, silent
from realloc.train.result import RunResult
from realloc.train.run import run_in
from realloc.train.watch import RunError


def base(**more: Any) -> RunConfig:
    return run_config({"data": "digits", "model": "mlp:16,16", "density": 0.2, "epochs": 2, "threads": 1} | more)


@pytest.mark.parametrize(
    ("methods", "seeds", "settings", "words"),
    [
        ([], [0], {}, ["no method"]),
        (["rigl"], [], {}, ["no seed"]),
        (["rigl", "rigl"], [0], {}, ["'rigl' is named twice"]),
        (["rigl"], [1, 1], {}, ["'1' is named twice"]),
        (["rigl", "sett"], [0], {}, ["'sett'", "nearest"]),
        (["static", "dense"], [0], {"drop": 0.2}, ["'drop'", "unknown to every arm"]),
        (["static"], [0], {"rigl.drop": 0.2}, ["'rigl'", "not among the arms"]),
        (["rigl"], [0], {"rigl.drp": 0.2}, ["'drp'", "nearest: 'drop'"]),
    ],
)
def test_a_bad_contest_is_refused(
    methods: list[str], seeds: list[int], settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        contest(base(), methods, seeds, settings)
    for word in words:
        assert word in str(error.value)


def test_settings_go_to_the_arms_that_have_them() -> None:
    found = contest(base(), ["static", "rigl", "gse"], [0], {"drop": 0.2, "gse.candidates": 2.0})
    assert [dict(entry.settings) for entry in found.entries] == [{}, {"drop": 0.2}, {"drop": 0.2, "candidates": 2.0}]


def test_every_arm_may_have_its_own_rate() -> None:
    found = contest(base(lr=0.003), ["static", "rigl", "dense"], [0], {"rigl.lr": 0.008, "dense.lr": 0.001})
    assert [entry.rate for entry in found.entries] == [0.003, 0.008, 0.001]
    assert [dict(entry.settings) for entry in found.entries] == [{}, {}, {}]
    with pytest.raises(ConfigError, match="lr"):
        contest(base(), ["static"], [0], {"static.lr": -1.0})


def test_a_contest_is_read_back_from_its_folder_and_finished_runs_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import realloc.compare.contest as module

    ran: list[str] = []

    def here(config: RunConfig, folder: Path, tell: Tell) -> RunResult:
        done = finished(config, folder)
        if done is None:
            ran.append(config.method)
        return done or run_in(folder, config, tell)

    monkeypatch.setattr(module, "run_apart", here)
    out = tmp_path / "c"
    started: list[str] = []

    def announce(config: RunConfig, number: int, total: int) -> Tell:
        started.append(f"{config.method}{config.seed} {number}/{total}")
        return silent

    found = contest(base(), ["static", "rigl"], [0, 1], {})
    first = compare(found, out, announce)
    assert started == ["static0 1/4", "rigl0 2/4", "static1 3/4", "rigl1 4/4"]
    assert read(out) == found and ran == ["static", "rigl"] * 2
    ran.clear()
    second = compare(contest(base(), ["static", "rigl", "small_dense"], [0, 1], {}), out, announce)
    assert ran == ["small_dense"] * 2
    assert second.rows[1].runs == first.rows[1].runs
    assert second.rows[2].excess is not None and second.rows[2].held is None
    with pytest.raises(ConfigError, match="epochs 2, not 3"):
        compare(contest(base(epochs=3), ["static"], [0], {}), out, announce)
    (out / CONTEST).write_text("{}")
    with pytest.raises(RecordError, match="delete it and compare once more: finished runs are kept"):
        read(out)
    (out / CONTEST).unlink()
    ran.clear()
    assert compare(found, out, announce).rows == first.rows and not ran and read(out) == found


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordError, match=r"is not empty \(it holds 'thesis.tex'\); a comparison starts in an empty"):
        compare(contest(base(), ["static"], [0], {}), tmp_path, None)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_arm_that_ends_at_another_budget_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import realloc.compare.contest as module

    held = iter([100, 101])

    def fake(config: RunConfig, folder: Path, tell: Any) -> Any:
        return type("Result", (), {"held": next(held), "currency": "weights"})()

    monkeypatch.setattr(module, "run_apart", fake)
    with pytest.raises(RunError, match="101"):
        compare(contest(base(), ["static", "rigl"], [0], {}), None, lambda *_: silent)


def test_errors_of_a_child_are_our_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="never fires"):
        run_apart(base(every=1000, method="rigl"), tmp_path / "a", silent)


PARENT = """
import sys
from pathlib import Path
from realloc.compare.apart import finished, run_apart
from realloc.train.config import run_config
from realloc.train.stop import Interrupted
try:
    config = run_config({"data": "digits", "model": "mlp:16,16", "method": "dense", "epochs": 100000})
    run_apart(config, Path(sys.argv[1]), lambda p: print(p.step, flush=True))
except Interrupted:
    sys.exit(130)
"""


def test_ctrl_c_reaches_the_child_which_saves_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 30:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert list((folder / "checkpoints").iterdir())
    assert not (folder / "owner.json").exists()


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 30:
            pass
        child = int(json.loads((folder / "owner.json").read_text())["pid"])
        process.kill()
    for _ in range(100):
        if not _alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child outlived its parent")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_demo_takes_the_digits_where_fashion_mnist_is_not_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REALLOC_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path)
    found = demo_contest()
    assert isinstance(found, Contest)
    assert found.names == ("dense", "small_dense", "static", "random_moves", "rigl")
    assert {entry.data for entry in found.entries} == {"digits"}
