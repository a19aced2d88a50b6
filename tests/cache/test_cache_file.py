"""The file of a cache: whose rows it holds, who may have it, and what may happen to it."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import bert, fresh, stack, train

import realloc
from realloc import Cache, methods
from realloc.cache.claim import Claim
from realloc.errors import ConfigError, ReallocWarning

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def attached(file: Path, seed: int = 0) -> tuple[Any, torch.optim.Optimizer, realloc.LayerHandle]:
    model, optimizer = fresh(stack, seed)
    return model, optimizer, realloc.attach(model, optimizer, methods.topk(1, cache=Cache(file=file, dtype="float32")))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether a model that reads gives what the plain one computes."""
    return torch.allclose(model(X), other(X), atol=1e-6)


def scale(model: Any, factor: float) -> None:
    with torch.no_grad():
        model[0].weight.mul_(factor)


# of which weights ---------------------------------------------------------------------------------------------------


def test_rows_of_other_weights_are_not_read_after_a_plain_state_was_loaded(tmp_path: Path) -> None:
    model, _, handle = attached(tmp_path / "rows")
    model(X)
    model.state_dict()
    other, _ = fresh(stack)
    scale(other, 1.05)
    model.load_state_dict(other.state_dict(), strict=False)
    assert same(model, other)
    assert handle.hits == 0.0


def test_rows_of_equal_weights_are_read_after_a_load(tmp_path: Path) -> None:
    model, _, handle = attached(tmp_path / "rows")
    model(X)
    model.load_state_dict(state_of(model))
    model(X)
    assert handle.hits == 0.5, "looked up twice, found the second time"


@pytest.mark.parametrize("hidden", [False, True])
def test_what_changed_before_a_checkpoint_is_not_sealed(hidden: bool, tmp_path: Path) -> None:
    """Also where it was written past the version, as old optimizers do."""
    model, _, handle = attached(tmp_path / "rows")
    model(X)
    if hidden:
        model[0].weight.data.mul_(1.05)
    else:
        scale(model, 1.05)
    with pytest.warns(ReallocWarning, match="RA102"):
        state = state_of(model)
    handle.detach()
    again, _, its = attached(tmp_path / "rows")
    again.load_state_dict(state)
    other, _ = fresh(stack)
    scale(other, 1.05)
    assert same(again, other)
    assert its.hits == 0.0


def test_a_small_change_below_is_seen_in_a_transformer(tmp_path: Path) -> None:
    model, optimizer = fresh(bert)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(file=tmp_path / "rows", limit="1MB")))
    train(model, optimizer, 3)
    state = state_of(model)
    with torch.no_grad():
        state["bert.encoder.layer.0.output.dense.weight"].mul_(1.001)
    model.load_state_dict(state)
    train(model, optimizer, 6, first=3)
    assert handle.hits == 0.0


@pytest.mark.parametrize("words", [{"dtype": "bfloat16"}, {"compute": "bfloat16"}])
def test_rows_of_other_settings_are_not_read(words: dict[str, Any], tmp_path: Path) -> None:
    model, _, handle = attached(tmp_path / "rows")
    model(X)
    state = state_of(model)
    handle.detach()
    again, optimizer = fresh(stack)
    cache = Cache(**{"file": tmp_path / "rows", "dtype": "float32", **words})
    its = realloc.attach(again, optimizer, methods.topk(1, cache=cache))
    again.load_state_dict(state)
    again(X)
    assert its.hits == 0.0


# whose --------------------------------------------------------------------------------------------------------------


def test_a_second_model_is_refused_and_the_first_one_keeps_its_rows(tmp_path: Path) -> None:
    model, _, handle = attached(tmp_path / "rows")
    model(X)
    second, _, other = attached(tmp_path / "rows", seed=1)
    with pytest.raises(ConfigError, match=r"rows'.*in use by another model of this process.*detach\(\)"):
        second(X)
    plain, _ = fresh(stack)
    assert same(model, plain) and handle.hits == 0.5
    handle.detach()
    second(X)
    assert other.hits == 0.0


def test_a_model_that_is_gone_gives_its_file_back(tmp_path: Path) -> None:
    gc.disable()  # the cycle of model and hooks is not found by chance
    try:
        model, optimizer, handle = attached(tmp_path / "rows")
        model(X)
        del model, optimizer, handle
        again, _, its = attached(tmp_path / "rows")
        again(X)
    finally:
        gc.enable()
    assert its.hits == 0.0


def test_a_trial_does_not_give_the_file_away(tmp_path: Path) -> None:
    model, optimizer, handle = attached(tmp_path / "rows")
    model(X)
    with handle.trial([0, 1]) as trial:
        model(X).square().mean().backward()
        optimizer.step()
        with pytest.raises(ConfigError, match="in use"):
            Claim(tmp_path / "rows")
    model(X)
    assert handle.hits == 0.5
    trial.adopt()
    optimizer.zero_grad()
    model(X)
    handle.train([2])
    model(X)
    with pytest.raises(ConfigError, match="in use"):
        Claim(tmp_path / "rows")
    handle.detach()
    Claim(tmp_path / "rows").release()


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_another_process_waits_for_a_killed_one_and_not_for_a_living_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows"
    code = (
        "import sys, time; from pathlib import Path; from realloc.cache.claim import Claim; "
        "claim = Claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            monkeypatch.setattr("realloc.cache.claim.ORPHANS", 0.3)
            with pytest.raises(ConfigError, match=r"rows'.*another process"):
                Claim(path)
        finally:
            process.kill()
    monkeypatch.undo()
    Claim(path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_does_not_end_the_claim(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "rows")
    child = os.fork()
    if not child:
        claim.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ConfigError, match="in use"):
        Claim(tmp_path / "rows")
    claim.release()


# what may happen to it ----------------------------------------------------------------------------------------------


def test_a_deleted_file_seals_nothing_and_leaves_the_next_one_alone(tmp_path: Path) -> None:
    model, _, handle = attached(tmp_path / "rows")
    model(X)
    (tmp_path / "rows").unlink()
    model(X)
    state = state_of(model)
    assert state["realloc_layers"][5:8].tolist() == [0, 0, 0]
    second, _, _ = attached(tmp_path / "rows", seed=1)
    second(X)
    second.state_dict()
    index = (tmp_path / "rows.index").read_bytes()
    model.state_dict()
    assert (tmp_path / "rows.index").read_bytes() == index
    plain, _ = fresh(stack)
    assert same(model, plain) and handle.hits == pytest.approx(2 / 3)


def test_a_file_that_cannot_be_is_refused_at_attach(tmp_path: Path) -> None:
    for file, word in ((tmp_path / "no" / "rows", "make .*no' first"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=word):
            attached(file)
    model, optimizer = fresh(stack)
    cache = Cache(file=tmp_path / "no" / "rows")
    with pytest.raises(ConfigError):
        realloc.attach(model, optimizer, methods.topk(1, cache=cache))
    assert all(p.requires_grad for p in model.parameters()) and "realloc_layers" not in model.state_dict()
    (tmp_path / "no").mkdir()
    realloc.attach(model, optimizer, methods.topk(1, cache=cache))
    (tmp_path / "no").rmdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        model(X)
