"""Fine-tuning whose token table trains only the rows that its texts touch: the same run in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from made_texts import rows, write
from safetensors.torch import load_file
from test_resume import Cut, cut_at, facts, weights

from realloc.finetune.bundled import REVIEW, reviews
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.decided import decide
from realloc.finetune.fit import fit
from realloc.finetune.guide import Guide
from realloc.finetune.result import FinetuneResult
from realloc.finetune.run import finetune, resume
from realloc.finetune.scene import prepared
from realloc.finetune.session import begun
from realloc.finetune.table import columns_of
from realloc.train.loop import Clock

VOCABULARY = 1500
ARMS = ["full", "lisa", "autofreeze", "egeria"]


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny model with many tokens that no text has."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tiny)
    config.vocab_size = VOCABULARY
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def config(model: Path | str, table: Path, method: str = "full", **more: Any) -> FinetuneConfig:
    values = {"model": str(model), "data": str(table), "method": method, "epochs": 2, "batch_size": 16, "lr": 1e-3}
    return finetune_config({**values, "threads": 1, **more})


def trained(what: FinetuneConfig, steps: int) -> tuple[list[float], Any]:
    """The losses of the first steps of a run, and its arm."""
    scene = prepared(what)
    decided = decide(scene)
    torch.manual_seed(what.seed)
    arm = begun(scene, decided)
    torch.manual_seed(what.seed)
    losses: list[float] = []

    def after(step: int, loss: float) -> None:
        losses.append(loss)
        if step == steps:
            raise Cut

    with pytest.raises(Cut):
        fit(arm, scene.train, scene.aim, Guide(decided.length, Clock(), scene.train), 0, after)
    return losses, arm


def bytes_of(optimizer: torch.optim.Optimizer) -> int:
    return sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.parametrize("method", ARMS)
def test_the_run_is_that_of_the_whole_table(method: str, wide: Path, table: Path) -> None:
    whole, plain = trained(config(wide, table, method, settings={"touched_rows": False}), 25)
    losses, arm = trained(config(wide, table, method), 25)
    assert plain.rows is None and arm.rows is not None
    assert losses == pytest.approx(whole, rel=0, abs=1e-6) and len(losses) == 25
    budget = arm.rows.budget // 32
    assert arm.rows.left_rows == arm.rows.released_rows == 0 and 0 < arm.rows.held <= arm.rows.budget
    assert 70 < budget <= 85
    if method in ("full", "lisa"):  # the others may have stopped their embeddings by then
        assert bytes_of(plain.optimizer) - bytes_of(arm.optimizer) == 2 * 4 * 32 * (VOCABULARY - budget)
    if arm.handle is not None:
        arm.handle.detach(), plain.handle.detach()
    arm.rows.detach()
    theirs = plain.model.state_dict()
    assert [*arm.model.state_dict()] == [*theirs]
    for name, value in arm.model.state_dict().items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=2e-5), name


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.parametrize("method", ARMS)
def test_a_run_that_is_cut_ends_bit_equal(
    method: str, wide: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def went(folder: Path) -> FinetuneResult:
        return finetune(config(wide, table, method, eval=str(judging), lr=3e-3), folder)

    straight = went(tmp_path / "a")
    monkeypatch.setattr("realloc.finetune.watch.SAVE_EVERY", 0.0)
    monkeypatch.setattr("realloc.finetune.watch.SAVE_SHARE", 0.0)
    for stop in (9,):
        with monkeypatch.context() as patch:
            cut_at(stop, patch)
            with pytest.raises(Cut):
                went(tmp_path / "b")
        again = resume(tmp_path / "b")
        assert again.resumed_from == stop
    assert facts(again) == facts(straight)
    mine, theirs = weights(tmp_path / "b"), weights(tmp_path / "a")
    assert [*mine] == [*theirs] and all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert not any("realloc" in name for name in mine)
    table_name = next(name for name in mine if name.endswith("word_embeddings.weight"))
    before = load_file(wide / "model.safetensors")["embeddings.word_embeddings.weight"]
    moved = (mine[table_name] != before).any(1)
    assert moved.any() and not moved[90:].any() and mine[table_name].shape == (VOCABULARY, 32)


def test_where_it_saves_nothing_or_cannot_be_the_table_trains_in_full(
    tiny: Path, decoder: Path, table: Path, tmp_path: Path
) -> None:
    assert trained(config(tiny, table), 1)[1].rows is None, "every word of the vocabulary comes in the texts"
    tied = transformers.AutoConfig.from_pretrained(decoder)
    tied.tie_word_embeddings, tied.vocab_size = True, VOCABULARY
    transformers.LlamaForCausalLM(tied).save_pretrained(tmp_path / "tied")
    transformers.AutoTokenizer.from_pretrained(decoder).save_pretrained(tmp_path / "tied")
    text = write(tmp_path / "t.csv", rows(60, 0))
    assert trained(config(tmp_path / "tied", text, task="causal-lm", text="text", tokens=16), 1)[1].rows is None
    assert trained(config(tmp_path / "tied", text), 1)[1].rows is not None, "no head stands on it here"


def test_real_weights_and_real_reviews(tmp_path: Path) -> None:
    found, column = reviews("reviews:recommended")
    real = [(text[:200], label) for _, (text, label) in columns_of(found, [REVIEW, column])[:90] if text]
    train = write(tmp_path / "train.csv", real)
    whole, plain = trained(config("minilm", train, lr=3e-4, settings={"touched_rows": False}), 6)
    losses, arm = trained(config("minilm", train, lr=3e-4), 6)
    assert losses == pytest.approx(whole, rel=0, abs=1e-6)
    held = arm.rows.sites["bert.embeddings.word_embeddings.weight"].held_rows
    assert 300 < held < 2000 and arm.rows.budget // 384 < 2000
    assert bytes_of(plain.optimizer) > 170e6 and bytes_of(arm.optimizer) < 0.55 * bytes_of(plain.optimizer)
