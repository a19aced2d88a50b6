"""Promise P4: stopped or killed anywhere, a fine-tuning run resumes and ends as the straight one."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from made_texts import rows, write
from safetensors import SafetensorError
from safetensors.torch import load_file

import realloc.finetune.arms.layers as layers
import realloc.finetune.focus as focus
import realloc.finetune.session as session_module
import realloc.finetune.watch as watch
from realloc.allocate.layer_costs import CostTable
from realloc.allocate.prefix import depths_of
from realloc.errors import ConfigError, RecordError
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.result import FinetuneResult, from_json
from realloc.finetune.run import finetune, resume
from realloc.record.checkpoint import load_latest
from realloc.record.events import read
from realloc.record.folder import read_result
from realloc.record.sealed import seal

TIMES = (
    "train_seconds", "evaluate_seconds", "save_seconds", "setup_seconds", "peak_bytes", "train_peak_bytes",
    "mapped_bytes", "costs", "predicted_lora_seconds", "folder", "resumed_from",
)  # fmt: skip


def config(tiny: Path, table: Path, judging: Path, method: str, **more: Any) -> FinetuneConfig:
    values = {"model": str(tiny), "data": str(table), "eval": str(judging), "method": method, "epochs": 2}
    return finetune_config({**values, "batch_size": 16, "lr": 3e-3, "threads": 1, **more})


def facts(result: FinetuneResult) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(result).items() if k not in TIMES}


class Cut(Exception):
    """The machine went down."""


def cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies right after this step and its checkpoint."""
    whole = session_module.fit

    def fit(arm: Any, batches: Any, aim: Any, guide: Any, first: int, after: Any) -> int:
        def cut(number: int, loss: float) -> None:
            after(number, loss)
            if number == step:
                raise Cut

        return whole(arm, batches, aim, guide, first, cut)

    monkeypatch.setattr(session_module, "fit", fit)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}/{name}": value
        for file in sorted((folder / "model").glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.parametrize(
    "method",
    [
        "full",
        "lora",
        "adalora",
        "eva",
        "para",
        "peft_lora",
        "peft_adalora",
        "topk",
        "lisa",
        "badam",
        "autofreeze",
        "layer_gradient",
        "egeria",
        "spiel",
    ],
)
def test_a_run_that_is_cut_again_and_again_ends_bit_equal(
    method: str, tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tiny, table, judging, method)
    straight = finetune(asked, tmp_path / "straight")
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)  # a checkpoint after each step: also inside an epoch
    monkeypatch.setattr(watch, "SAVE_SHARE", 0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(5, patch)
        finetune(asked, tmp_path / "cut")
    for step in (19, 23):  # in the last third nothing is decided any more
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_at(step, patch)
            resume(tmp_path / "cut")
    result = resume(tmp_path / "cut")
    assert result.resumed_from == 23 and result.steps == 28
    assert facts(result) == facts(straight)
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    logs = [
        [
            {k: v for k, v in line.items() if k not in ("seconds", "crc")}
            for line in read(tmp_path / name / "events.jsonl").lines
        ]
        for name in ("straight", "cut")
    ]
    assert logs[0] == logs[1]


@pytest.mark.filterwarnings("ignore:.RA003")
def test_a_budget_in_microseconds_keeps_its_first_table(
    tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By it the two lowest layers fit, which FLOPs do not pay for; that of the other machine would pay for none."""
    settings = {"currency": "microseconds", "share": 0.8}
    asked = config(tiny, table, judging, "layer_gradient", settings=settings)
    monkeypatch.setattr(layers, "cost_table", lambda *_: CostTable((1,) * 3, (1,) * 3, (300, 300, 400)))
    straight = finetune(asked, tmp_path / "straight")
    plain = finetune(config(tiny, table, judging, "layer_gradient", settings={"share": 0.8}), tmp_path / "plain")
    assert straight.layers != plain.layers
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(watch, "SAVE_SHARE", 0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(5, patch)
        finetune(asked, tmp_path / "cut")
    monkeypatch.setattr(layers, "cost_table", lambda *_: CostTable((10**6,) * 3, (1,) * 3, (10**5,) * 3))
    assert facts(resume(tmp_path / "cut")) == facts(straight)


@pytest.mark.filterwarnings("ignore:.RA003")
def test_a_real_cost_table_is_timed_where_microseconds_are_the_budget(
    tiny: Path, table: Path, judging: Path, tmp_path: Path
) -> None:
    settings = {"currency": "microseconds", "share": 0.9}
    finetune(config(tiny, table, judging, "layer_gradient", settings=settings), tmp_path / "run")
    attached = next(line for line in read(tmp_path / "run" / "events.jsonl").lines if line.get("unit"))
    assert attached["unit"] == "microseconds a step"


@pytest.mark.parametrize("method", ["lora", "peft_lora", "spiel", "topk"])
def test_a_checkpoint_holds_only_what_may_change_and_asks_for_the_same_rest(
    method: str, tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "tiny"
    shutil.copytree(tiny, model)
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(watch, "SAVE_SHARE", 0)
    settings = {"k": 1} if method == "topk" else {}
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(3, patch)
        finetune(config(model, table, judging, method, settings=settings), tmp_path / "a")
    found = load_latest(tmp_path / "a" / "checkpoints")
    assert found is not None
    saved = sum(t.numel() for name, t in found.tensors.items() if name.startswith("model/"))
    assert 0 < saved < 0.9 * sum(p.numel() for p in transformers.AutoModel.from_pretrained(model).parameters())
    other = transformers.AutoModel.from_pretrained(model)
    with torch.no_grad():
        other.pooler.dense.weight.mul_(2.0)  # never trains
        other.encoder.layer[0].output.dense.weight.mul_(2.0)
    other.save_pretrained(model)
    with pytest.raises(RecordError, match="frozen weights are not those that the run began with"):
        resume(tmp_path / "a")


def test_a_model_that_focus_made_shorter_is_so_after_a_resume(
    tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)) / 100
    found = depths_of([noise + mean for mean in (1.0, 0.5, 0.7, 0.9)])  # freeze one of three layers, drop one
    monkeypatch.setattr(focus, "_probed", lambda *_: found)
    monkeypatch.setattr(focus, "measure", lambda *_: focus.Costs(100, 1.0, 1.0, 1.0))  # no clock decides
    asked = config(tiny, table, judging, "focus", settings={"share": 1e-6})
    straight = finetune(asked, tmp_path / "straight")
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(watch, "SAVE_SHARE", 0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(9, patch)
        finetune(asked, tmp_path / "cut")
    result = resume(tmp_path / "cut")
    assert result.resumed_from == 9 and result.layers == straight.layers and len(straight.layers or {}) == 2
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resume_decides_nothing_again(
    tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(3, patch)
        finetune(config(tiny, table, judging, "focus"), tmp_path / "a")

    def never(scene: Any) -> None:
        raise AssertionError("decided again")

    monkeypatch.setattr(session_module, "decide", never)
    assert resume(tmp_path / "a").used == "lora"


def test_a_finished_run_hands_back_its_result_and_is_not_run_over(
    tiny: Path, table: Path, judging: Path, tmp_path: Path
) -> None:
    asked = config(tiny, table, judging, "topk")
    result = finetune(asked, tmp_path / "a")
    assert resume(tmp_path / "a") == result == from_json(json.loads(json.dumps(result.as_json())))
    with pytest.raises(RecordError, match="holds a run already; resume it"):
        finetune(asked, tmp_path / "a")
    with pytest.raises(RecordError, match="differs in held"):
        from_json({k: v for k, v in result.as_json().items() if k != "held"})


@pytest.mark.parametrize("method", ["topk", "lora"])
def test_a_disk_that_fills_up_while_the_model_is_written(
    method: str, tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune_config(
        {"model": str(tiny), "data": str(table), "eval": str(judging), "method": method, "epochs": 1}
    )

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.modeling_utils.safe_save_file", full)
        patched.setattr("realloc.finetune.save.save_head", full)
        with pytest.raises(RecordError, match=r"cannot write the model into .*No space left.*resume the run"):
            finetune(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists() and read_result(tmp_path / "run") is None
    done = resume(tmp_path / "run")
    assert done.finished and done.test == finetune(config).test
    assert load_file(tmp_path / "run" / "model" / "head.safetensors")


def test_bad_input_gives_the_folder_up_again(tiny: Path, table: Path, judging: Path, tmp_path: Path) -> None:
    flat = write(tmp_path / "one.csv", [(text, "same") for text, _ in rows(20, 0)])
    with pytest.raises(ConfigError, match="every label"):
        finetune(config(tiny, flat, judging, "full"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="cheapest LoRA rank"):  # found after the weights are loaded
        finetune(config(tiny, judging, table, "lora", budget="150"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_budget_of_seconds_is_spent_over_all_processes(
    tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(watch, "SAVE_SHARE", 0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(12, patch)
        finetune(config(tiny, table, judging, "full", epochs=None, budget="3s"), tmp_path / "a")
    before = json.loads((max((tmp_path / "a" / "checkpoints").glob("0*")) / "state.json").read_text())
    assert before["extra"]["train_seconds"] > 0
    result = resume(tmp_path / "a")
    assert result.resumed_from == 12 and 2.0 < result.train_seconds <= 3.06


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.parametrize("method", ["full", "adalora", "para", "peft_adalora", "topk"])
def test_a_run_of_seconds_that_is_cut_follows_what_was_written_and_ends_bit_equal(
    method: str, tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = session_module.fit

    def fit(arm: Any, batches: Any, aim: Any, guide: Any, first: int, after: Any) -> int:
        def kept(number: int, loss: float) -> None:
            after(number, loss)
            if number in (2, 15):  # before anything is written, and between two revisions
                after.save(number)
                with guide.clock.apart("copy"):
                    shutil.copytree(tmp_path / "straight", tmp_path / f"cut{number}")

        return whole(arm, batches, aim, guide, first, kept)

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "fit", fit)
        straight = finetune(config(tiny, table, judging, method, epochs=None, budget="2s"), tmp_path / "straight")
    course = tmp_path / "straight" / "course.json"
    totals = json.loads(course.read_text())["totals"]
    assert len(totals) > 3 and totals[-1][1] == straight.steps > 15 and straight.train_seconds <= 2.04
    for number in (2, 15):
        folder = tmp_path / f"cut{number}"
        shutil.copy(course, folder / course.name)
        result = resume(folder)
        assert result.resumed_from == number and facts(result) == facts(straight)
        one, other = weights(tmp_path / "straight"), weights(folder)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("totals", [None, [], [[1, 9]], [[0, 9], [4, 2]], [[0, 9], [10, 12]], [[0, 9.5]], [[0]], "x"])
def test_a_course_that_is_none_is_refused(
    totals: Any, tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(9, patch)
        finetune(config(tiny, table, judging, "full", epochs=None, budget="2s"), tmp_path / "a")
    (tmp_path / "a" / "course.json").write_bytes(seal({"totals": totals}))
    with pytest.raises(RecordError, match="the course of the run"):
        resume(tmp_path / "a")


# the command line --------------------------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "realloc.cli.main", *words]


def environment() -> dict[str, str]:
    return dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1", HF_HUB_OFFLINE="1")


def started(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        command("finetune", *words, "--out", str(folder)), env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((folder / "checkpoints").glob("0*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return child


def test_killed_and_interrupted_runs_go_on_from_the_command_line(tiny: Path, table: Path, tmp_path: Path) -> None:
    words = ["--model", str(tiny), "--data", str(table), "--method", "topk", "--epochs", "100", "--threads", "1"]
    with started(tmp_path / "killed", words) as child:
        time.sleep(random.Random(0).uniform(0.0, 0.5))
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and read_result(tmp_path / "killed") is None
    with started(tmp_path / "asked", words) as child:
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130 and stdout == ""
    assert "a checkpoint is written, go on with: realloc resume" in stderr and "Traceback" not in stderr
    found = []
    for again in (["resume", str(tmp_path / "killed")], ["finetune", "--resume", "--out", str(tmp_path / "asked")]):
        done = subprocess.run(command(*again, "--json"), env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        found.append(json.loads(done.stdout))
    assert all(one["resumed_from"] > 0 and one["steps"] == 100 * 7 for one in found)
    assert found[0]["held"] == found[1]["held"]
    one, other = (load_latest(tmp_path / name / "checkpoints") for name in ("killed", "asked"))
    assert one is not None and other is not None
    names = [name for name in one.tensors if name.startswith(("model/", "optimizer/"))]
    assert names and all(torch.equal(one.tensors[name], other.tensors[name]) for name in names)
