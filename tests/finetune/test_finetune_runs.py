"""Whole runs on a tiny model: every method trains what it says, and leaves a model that loads."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from made_texts import WORDS, rows, write
from safetensors.torch import load_file

import realloc.finetune.arms.table as arms
import realloc.finetune.decided as decided
import realloc.finetune.focus as focus
import realloc.finetune.session as session
from realloc.allocate.prefix import depths_of
from realloc.errors import ConfigError, ReallocWarning
from realloc.finetune.arms.ranks import RANKS
from realloc.finetune.bundled import REVIEW, model_folder, reviews
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.foresee import foreseen
from realloc.finetune.head import with_head
from realloc.finetune.preview import preview
from realloc.finetune.result import FinetuneResult
from realloc.finetune.run import finetune
from realloc.finetune.table import columns_of
from realloc.record.events import read as events


def config(tiny: Path, table: Path, **more: Any) -> FinetuneConfig:
    return finetune_config({"model": str(tiny), "data": str(table), "epochs": 3, "batch_size": 16, "lr": 3e-3, **more})


def run(tiny: Path, table: Path, folder: Path | None = None, **more: Any) -> FinetuneResult:
    return finetune(config(tiny, table, **more), folder)


@pytest.mark.filterwarnings("ignore:.RA003")  # three layers leave little to choose
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # the same, of AdaLoRA
@pytest.mark.parametrize("name", [*arms.KINDS, "focus"])
def test_every_method_learns_and_reports(name: str, tiny: Path, table: Path, judging: Path, tmp_path: Path) -> None:
    settings = {"layer_gradient": {"share": 0.8}, "random_layers": {"share": 0.8}}.get(name, {})
    more = {"settings": settings, "epochs": 15} | ({"lr": 3e-2} if name in ("peft_adalora", "shira") else {})
    found = run(tiny, table, tmp_path / "out", method=name, eval=str(judging), **more)
    assert found.test_accuracy is not None and found.test_accuracy > 0.5  # one in three by chance
    assert found.trainable <= found.parameters and found.optimizer_bytes > 0
    assert json.loads(json.dumps(found.as_json()))["method"] == name
    saved = tmp_path / "out" / "model"
    assert transformers.AutoTokenizer.from_pretrained(saved).vocab_size == len(WORDS) + 4
    head = load_file(saved / "head.safetensors")
    assert head["weight"].shape == (3, 32)
    if "rank" in found.settings:
        from peft import PeftModel

        base = transformers.AutoModel.from_pretrained(tiny)
        PeftModel.from_pretrained(base, saved)
    else:
        again = transformers.AutoModel.from_pretrained(saved)
        assert not any(key.startswith("realloc") for key in again.state_dict())
    if name == "peft_adalora":
        kept = json.loads((saved / "adapter_config.json").read_text())["rank_pattern"]
        assert sum(sum(ranks) for ranks in kept.values()) == 8 * len(kept) == 8 * 3 * 6


def test_the_saved_model_foretells_what_the_trained_one_did(
    tiny: Path, table: Path, judging: Path, tmp_path: Path
) -> None:
    found = run(tiny, table, tmp_path / "out", method="topk", eval=str(judging))
    base = transformers.AutoModel.from_pretrained(tmp_path / "out" / "model", add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    head = load_file(tmp_path / "out" / "model" / "head.safetensors")
    whole = with_head(base, tmp_path / "out" / "model")
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "out" / "model").iterdir()}
    assert modes == {(tmp_path / "out" / "model").stat().st_mode & 0o666}
    right = 0
    with torch.no_grad():
        for text, label in rows(90, 1):
            batch = tokenizer(text, return_tensors="pt")
            hidden = base(**batch).last_hidden_state.mean(1)
            logits = hidden @ head["weight"].T + head["bias"]
            assert torch.allclose(whole(batch["input_ids"], batch["attention_mask"]), logits, atol=1e-5)
            right += ("bad", "fine", "good")[int(logits.argmax())] == label
    assert right / 90 == pytest.approx(found.test_accuracy)


def test_the_same_seed_gives_the_same_run_and_the_evaluation_file_changes_nothing(
    tiny: Path, table: Path, judging: Path
) -> None:
    plain, again, judged = (
        run(tiny, table, method="topk", settings={"k": 1}, **more) for more in ({}, {}, {"eval": str(judging)})
    )
    assert plain.held == again.held == judged.held
    assert run(tiny, table, method="topk", settings={"k": 1}, seed=1).held != plain.held


def test_focus_trains_every_layer_where_no_depth_knows_more(tiny: Path, table: Path) -> None:
    """Random layers over a bag of words: the embeddings know it all."""
    found = run(tiny, table, method="focus")
    assert found.used == "lora" and "every layer must train" in found.why
    assert found.predicted_lora_seconds is not None and found.costs is not None


def test_focus_drops_the_layers_that_know_less_and_a_resume_does_too(
    tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)) / 100
    found = depths_of([noise + mean for mean in (1.0, 0.5, 0.7, 0.9)])
    assert (found.frozen, found.kept) == (1, 2)
    monkeypatch.setattr(focus, "_probed", lambda *_: found)
    told = preview(config(tiny, table, method="focus"))
    assert [*told.layers.values()] == ["frozen", "trains", "dropped"]
    whole = run(tiny, table, tmp_path / "a", method="focus", eval=str(judging))
    assert whole.layers is not None and [*whole.layers.values()] == [False, True]
    assert "the 1 above depth 2, which knows less, dropped" in whole.why
    base = transformers.AutoModel.from_pretrained(tmp_path / "a" / "model")
    assert base.config.num_hidden_layers == 2 and len(base.encoder.layer) == 2
    with_head(base, tmp_path / "a" / "model")


def test_the_cache_takes_as_much_as_is_said(tiny: Path, table: Path) -> None:
    whole = run(tiny, table, method="topk", settings={"k": 1})
    assert 60_000 < whole.cached_bytes <= 10**9
    assert 0 < run(tiny, table, method="topk", settings={"k": 1}, cache="60kB").cached_bytes <= 60_000


def test_a_model_may_be_asked_for_fewer_layers(tiny: Path, table: Path, tmp_path: Path) -> None:
    found = run(tiny, table, tmp_path / "a", method="lora", layers=2)
    assert found.parameters < run(tiny, table, method="lora").parameters
    with pytest.raises(ConfigError, match="--layers 9 is more than the 3 layers of"):
        run(tiny, table, layers=9)


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # the same, of AdaLoRA
@pytest.mark.parametrize("name", ["lora", "adalora", "peft_lora", "peft_adalora"])
def test_a_shortened_model_is_saved_whole(name: str, tiny: Path, table: Path, judging: Path, tmp_path: Path) -> None:
    """An adapter beside the name of the full model would be put on all of its layers."""
    found = run(tiny, table, tmp_path / "out", method=name, layers=2, eval=str(judging))
    saved = tmp_path / "out" / "model"
    assert not (saved / "adapter_config.json").exists()
    base = transformers.AutoModel.from_pretrained(saved, add_pooling_layer=False)
    assert len(base.encoder.layer) == 2
    whole, tokenizer = with_head(base, saved), transformers.AutoTokenizer.from_pretrained(saved)
    losses = []
    with torch.no_grad():
        for text, label in rows(90, 1):
            batch = tokenizer(text, return_tensors="pt")
            logits = whole(batch["input_ids"], batch["attention_mask"])
            losses.append(
                torch.nn.functional.cross_entropy(logits, torch.tensor([("bad", "fine", "good").index(label)]))
            )
    assert float(torch.stack(losses).mean()) == pytest.approx(found.test_loss, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize(("name", "budget"), [*((name, "20001") for name in RANKS), ("lora", "20k"), ("eva", "30%")])
def test_a_budget_of_parameters_is_exact_where_ranks_are_our_own(
    name: str, budget: str, tiny: Path, table: Path, tmp_path: Path
) -> None:
    whole = sum(p.numel() for p in transformers.AutoModel.from_pretrained(tiny).parameters()) + 99
    wanted = {"20k": 20_000, "20001": 20_001, "30%": int(0.3 * whole)}[budget]
    told = preview(config(tiny, table, method=name, budget=budget, epochs=1))
    made = run(tiny, table, tmp_path / "out", method=name, budget=budget, epochs=1)
    ledger = made.ledger
    assert ledger is not None and told.ledger is not None
    assert ledger["budget"] == ledger["head"] + ledger["held"] + ledger["parked"] == wanted == made.trainable
    assert ledger["head"] == 99 and told.ledger["budget"] == told.trainable == wanted
    assert f"ledger: {wanted:,} parameters = 99 head + " in str(told)
    assert told.ledger["parked"] < 64 or name == "rank_gradient"  # which starts with half
    share = {"adalora": 2 / 3, "para": 1 / 2}.get(name, 1.0)  # what they keep of what they start with
    assert share * (wanted - 99) - 80 < ledger["held"] <= share * (wanted - 99)
    from peft import PeftModel

    base = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tiny), tmp_path / "out" / "model")
    saved = sum(p.numel() for key, p in base.named_parameters() if "lora_" in key)
    assert saved == ledger["held"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_a_budget_of_parameters_sets_peft_s_rank_or_layers_at_most(tiny: Path, table: Path) -> None:
    for name in ("peft_lora", "peft_adalora"):
        wide = run(tiny, table, method=name, budget="20k", epochs=1)
        assert 10_000 < wide.trainable <= 20_000 and wide.ledger is None
    top = run(tiny, table, method="topk", budget="9k", epochs=1)
    assert top.settings == {"k": 1} and top.trainable <= 9_000
    for name, budget, says in (
        ("peft_lora", "500", "one LoRA rank on every linear layer takes .* or more; for seconds write 60s"),
        ("topk", "500", "or take --method lora; for seconds write 60s"),
        ("lora", "150", "leaves 51 parameters beside the head, and the cheapest LoRA rank takes 64; raise .* by 13 or"),
        ("lora", "150", "by 13 or more; for seconds write 60s"),
        ("lora", "50", "leaves 0 parameters beside the head"),
        ("lora", "90k", "all ranks of all linear layers hold 39,936; lower the budget by 49,965 or more"),
        ("adalora", "170", "below one rank"),
        ("gora", "500", "raise the budget, or lower least"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(tiny, table, method=name, budget=budget)
    with pytest.raises(ConfigError, match="setting 'rank=4' and the budget 20k both say"):
        run(tiny, table, method="lora", budget="20k", settings={"rank": 4})
    with pytest.raises(ConfigError, match="no setting"):
        run(tiny, table, method="badam", budget="9k")


@pytest.mark.parametrize("name", ["full", "lora", "topk", "focus", "lisa"])
def test_a_budget_of_seconds_holds_all_that_train_seconds_counts(name: str, tiny: Path, table: Path) -> None:
    found = run(tiny, table, method=name, budget="3s", epochs=None)
    assert 2.0 < found.train_seconds <= 3.06 and found.steps > 3


@pytest.mark.parametrize("times", [0.2, 5.0])
@pytest.mark.parametrize("name", ["para", "adalora", "rank_gradient", "peft_adalora"])
def test_ranks_get_where_they_were_to_get_however_wrong_the_first_guess_was(
    name: str, times: float, tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run(tiny, table, method=name, budget="1s", epochs=None).steps
    steps = max(4, int(times * right))
    monkeypatch.setattr(decided, "foreseen", lambda scene, s: dataclasses.replace(foreseen(scene, s), steps=steps))
    made: list[Any] = []
    whole = session.fit
    monkeypatch.setattr(session, "fit", lambda arm, *rest: made.append(arm) or whole(arm, *rest))
    result = run(tiny, table, method=name, budget="1s", epochs=None, settings={"rank": 4})
    if name == "peft_adalora":
        config = made[0].adapter.peft_config["default"]
        stays = sum(map(sum, config.rank_pattern.values()))
        assert stays <= 4 * len(config.rank_pattern) and result.steps >= config.total_step - config.tfinal
        return
    ledger, handle = result.ledger, made[0].handle
    assert ledger is not None and handle.start.budget == ledger["held"] + ledger["parked"]
    most = max(sum(site.shape) for site in handle.sites.values())
    final = handle._engine.method.share(1.0) * sum(min(4, *s.shape) * sum(s.shape) for s in handle.sites.values())
    assert final - most < ledger["held"] <= final  # what is left pays for no rank


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 12])
def test_the_rival_makes_its_last_cut_in_runs_of_a_few_steps(steps: int, tiny: Path, table: Path) -> None:
    found = run(tiny, table, method="peft_adalora", epochs=steps / 14)
    assert found.steps == steps


@pytest.mark.parametrize(("steps", "total"), [(5, 6), (5, 7), (9, 10), (9, 11), (9, 30)])
def test_the_rival_makes_its_last_cut_where_seconds_end_early(
    steps: int, total: int, tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    whole = session.fit

    def fit(arm: Any, batches: Any, aim: Any, guide: Any, first: int, after: Any) -> int:
        made.append(arm)
        monkeypatch.setattr(guide, "after", lambda step: step == steps and guide._revise(step, total))
        return whole(arm, batches, aim, guide, first, after)

    monkeypatch.setattr(session, "fit", fit)
    found = run(tiny, table, method="peft_adalora", settings={"rank": 4})
    kept = made[0].adapter.peft_config["default"].rank_pattern
    assert found.steps == total and sum(map(sum, kept.values())) <= 4 * len(kept)


@pytest.mark.parametrize("name", ["lisa", "badam", "random_layers"])
def test_layers_take_turns_to_the_end_however_wrong_the_first_guess_was(
    name: str, tiny: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decided, "foreseen", lambda scene, s: dataclasses.replace(foreseen(scene, s), steps=20))
    settings = {"random_layers": {"share": 0.8}}.get(name, {})
    found = run(tiny, table, tmp_path / "a", method=name, budget="1s", epochs=None, settings=settings)
    turns = [line["step"] for line in events(tmp_path / "a" / "events.jsonl").lines if line["kind"] == "move"]
    assert found.steps > 40 and turns[-1] > 0.75 * found.steps


def test_a_run_that_ends_before_its_last_move_says_so(tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = session.fit

    def fit(arm: Any, batches: Any, aim: Any, guide: Any, first: int, after: Any) -> int:
        monkeypatch.setattr(guide, "after", lambda step: step == 3 and guide._revise(3, 3))
        return whole(arm, batches, aim, guide, first, after)

    monkeypatch.setattr(session, "fit", fit)
    with pytest.warns(ReallocWarning, match=r"RA006.*ended at step 3, before the last move"):
        run(tiny, table, method="para")


def test_a_budget_of_seconds_that_pays_for_no_step_is_refused(tiny: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.001 s pays for no step: .* and judging 24 held-out texts will take"):
        run(tiny, table, tmp_path / "out", method="full", budget="0.001s", epochs=None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="pays for no step"):
        preview(config(tiny, table, method="full", budget="0.001s", epochs=None))


def test_regression_foretells_numbers_in_their_own_unit(tiny: Path, tmp_path: Path) -> None:
    numbers = [(text, str(1000 + 10 * ("bad", "fine", "good").index(label))) for text, label in rows(240, 0)]
    path = write(tmp_path / "n.csv", numbers, ("text", "label"))
    judged = [(text, str(1000 + 10 * ("bad", "fine", "good").index(label))) for text, label in rows(90, 1)]
    test = str(write(tmp_path / "t.csv", judged, ("text", "label")))
    found = run(tiny, path, tmp_path / "out", task="regression", method="full", epochs=6, eval=test)
    spread = torch.tensor([float(y) for _, y in numbers]).std()
    assert 0 < found.held["rmse"] < float(spread)
    saved = tmp_path / "out" / "model"
    whole = with_head(transformers.AutoModel.from_pretrained(saved, add_pooling_layer=False), saved)
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    with torch.no_grad():
        told = [float(whole(**tokenizer([text], return_tensors="pt"))) for text, _ in judged]
    errors = torch.tensor(told) - torch.tensor([float(y) for _, y in judged])
    assert float(errors.square().mean().sqrt()) == pytest.approx(found.test_rmse, rel=1e-3)
    flat = write(tmp_path / "f.csv", [(text, "7") for text, _ in numbers])
    with pytest.raises(ConfigError, match="same number"):
        run(tiny, flat, task="regression", method="full")


@pytest.mark.parametrize("name", ["topk", "full", "lora", "badam"])
def test_a_causal_language_model(name: str, decoder: Path, tmp_path: Path) -> None:
    """Words that follow each other in a ring are foretold better than at random; LoRA leaves the embeddings random."""
    path = tmp_path / "ring.txt"
    path.write_text(" ".join(WORDS[i % 20] for i in range(1600)))
    found = run(decoder, path, tmp_path / "out", task="causal-lm", method=name, tokens=16, epochs=8, lr=1e-2)
    assert found.metric == "loss" and 0 < found.held["loss"] < (
        0.9 * math.log(84) if name == "lora" else 0.8 * math.log(20)
    )
    if name == "lora":
        same = run(decoder, path, task="causal-lm", method="focus", tokens=16, epochs=8, lr=1e-2)
        assert same.held == found.held and same.used == "lora" and "no labels" in same.why
    else:
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
        assert {type(m).__name__ for m in again.modules()} >= {"LlamaDecoderLayer"}
    path.write_text("w1 w2")
    with pytest.raises(ConfigError, match=r"gives 1 piece\(s\)"):
        run(decoder, path, task="causal-lm", method=name)


def test_real_weights_and_real_reviews(tmp_path: Path) -> None:
    table, column = reviews("reviews:recommended")
    real = [(text[:200], label) for _, (text, label) in columns_of(table, [REVIEW, column])[:70] if text]
    judge = write(tmp_path / "eval.csv", real[48:])
    train = write(tmp_path / "train.csv", real[:48])
    found = finetune(
        finetune_config({"model": "minilm", "data": str(train), "eval": str(judge), "epochs": 2, "method": "topk"})
    )
    assert found.parameters > 22_000_000 and found.layers == {f"bert.encoder.layer.{i}": i > 3 for i in range(6)}
    assert found.cached_bytes > 0 and found.test_accuracy is not None and found.test_accuracy >= 0.5


@pytest.mark.parametrize("name", ["spiel", "shira"])
def test_a_budget_of_parameters_is_exact_for_deltas(name: str, tiny: Path, table: Path) -> None:
    made = run(tiny, table, method=name, budget="1234", epochs=1)
    assert made.trainable == 1234 and made.settings["parameters"] == 1234 - 99  # the head has 99
    assert made.ledger == {"budget": 1234, "head": 99, "held": 1234 - 99, "parked": 0}
    for budget, says in (
        ("90", "leaves 0 parameters beside the head; raise it by 10 or more; for seconds write 60s"),
        ("90k", "the linear layers have .* weights; lower the budget"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(tiny, table, method=name, budget=budget)
    with pytest.raises(ConfigError, match=f"setting 'parameters' of '{name}' is -1"):
        run(tiny, table, method=name, settings={"parameters": -1})


@pytest.mark.filterwarnings("ignore:.RA003")  # three steps are too few for a move
def test_a_sparse_delta_of_real_weights(tmp_path: Path) -> None:
    """An exact number of parameters, and merged weights that stock transformers read to the same outputs."""
    table, column = reviews("reviews:recommended")
    real = [(text[:100], label) for _, (text, label) in columns_of(table, [REVIEW, column])[:40] if text]
    train = write(tmp_path / "train.csv", real)
    asked = {"model": "minilm", "data": str(train), "epochs": 2, "method": "spiel", "budget": "300k"}
    found = finetune(finetune_config(asked), tmp_path / "out")
    assert found.trainable == 300_000 and found.optimizer_bytes == pytest.approx(2_400_000, rel=1e-3)
    folder = tmp_path / "out" / "model"
    old, new = (transformers.AutoModel.from_pretrained(f) for f in (model_folder("minilm")[0], folder))
    changed = sum(int((p != q).sum()) for p, q in zip(old.parameters(), new.parameters(), strict=True))
    head = sum(value.numel() for value in load_file(folder / "head.safetensors").values())
    assert 0.95 * (300_000 - head) < changed <= 300_000 - head  # a gradient of zero moves nothing


# bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"method": "lorra"}, "method 'lorra' is unknown.*nearest: 'lora'"),
        ({"method": "topk", "settings": {"n": 2}}, "setting 'n' is unknown: 'topk' takes k"),
        ({"method": "topk", "settings": {"k": 0.5}}, "setting 'k' of 'topk' is 0.5"),
        ({"model": "/no/where"}, "does not exist"), ({"model": "no/where"}, "cannot be loaded"),
        ({"epochs": 0}, "epochs 0 is not allowed"), ({"seed": True}, "seed true is not allowed"),
    ],
)  # fmt: skip
def test_bad_configs(more: dict[str, Any], says: str, tiny: Path, table: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tiny, table, **more)


def test_a_preview_predicts_what_a_run_does(tiny: Path, table: Path) -> None:
    told = preview(config(tiny, table, method="topk", settings={"k": 1}))
    made = run(tiny, table, method="topk", settings={"k": 1})
    assert told.steps == made.steps and told.trainable == made.trainable and told.parameters == made.parameters
    assert told.optimizer_bytes == pytest.approx(made.optimizer_bytes, rel=0.05)
    assert told.seconds > 0 and made.layers is not None
    assert told.layers == {name.removeprefix("bert."): "trains" if on else "frozen" for name, on in made.layers.items()}
