"""Trainer, Lightning, accelerate and a plain loop: the same decisions for one seed, and resumes with no extra call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import lightning
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import realloc
from realloc import methods
from realloc.allocate.layer_costs import CostTable
from realloc.errors import ConfigError, ReallocWarning, StateError
from realloc.integrations.lightning import ReallocCallback as LightningCallback
from realloc.integrations.transformers import ReallocCallback as TrainerCallback

STEPS, SIZE, RATE = 12, 4, 1e-3
TABLE = CostTable((40, 50, 60), (40, 45, 70), (30, 90, 35))
METHODS = {
    "topk": lambda: methods.topk(1), "lisa": lambda: methods.lisa(2),
    "layer_gradient": lambda: methods.layer_gradient(0.7), "adalora": lambda: methods.adalora(rank=2),
    "random_ranks": lambda: methods.random_ranks(rank=2), "spiel": lambda: methods.spiel(budget=300, steps=2),
    "egeria": lambda: methods.egeria(0.9, tests=1, window=2),
    "timed": lambda: methods.layer_gradient(0.7).costing(TABLE),
    "touched_rows": lambda: methods.touched_rows(30), "width": lambda: methods.width(drop=0.4, mature=0, window=2),
    "llrd": methods.llrd, "loss_change": lambda: methods.loss_change(window=2), "rows": lambda: methods.rows(look=1),
    "columns": lambda: methods.columns(8).on("bert.encoder.layer.0.intermediate.dense"),
}  # fmt: skip
STILL = ("topk", "llrd")  # they decide once
BESIDE = ("adalora", "random_ranks", "spiel")  # of these, what is beside frozen weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),  # of the frameworks, about loggers, workers and devices
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.RA003"),
]


def bert(name: str = "") -> Any:
    """With the embedding that a method wants."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    if name == "rows":
        model.set_input_embeddings(realloc.nn.Embedding(40, 16, rows="60%", padding_idx=0))
    return model


class Texts(Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 40, (STEPS * SIZE // 2, 6), generator=draw)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[0] > 20).long()}


def loader() -> DataLoader[Any]:
    return DataLoader(Texts(), batch_size=SIZE, shuffle=False)


def every(name: str) -> int | None:
    return None if name in STILL else 3


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def plain(
    name: str, *, accelerated: bool = False, save: Path | None = None, load: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Two epochs in a loop of one's own; ``save`` and ``load``: accelerate's checkpoint between them."""
    model: Any = bert(name).train()
    method = METHODS[name]()
    if name in BESIDE:
        realloc.prepare(model, method)
    optimizer: Any = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    batches: Any = loader()
    accelerator = accelerate.Accelerator(cpu=True) if accelerated else None
    if accelerator is not None:
        model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    schedule = None if name in STILL else realloc.every(3, total=STEPS)
    handle = realloc.attach(model, optimizer, method, schedule=schedule)
    if accelerator is not None and load is not None:
        accelerator.load_state(str(load))
    for epoch in range(load is not None, 2):
        if accelerator is not None and epoch and save is not None:
            accelerator.save_state(str(save), safe_serialization=False)
        for batch in batches:
            loss = model(**batch).loss
            optimizer.zero_grad()
            accelerator.backward(loss) if accelerator is not None else loss.backward()
            optimizer.step()
    return weights(model), handle.state()


class Sequential(transformers.Trainer):
    """In the order of the data, as the others here."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(folder: Path, **more: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=SIZE, num_train_epochs=2, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, report_to=[], use_cpu=True,
        disable_tqdm=True, optim="adamw_torch", **{"save_strategy": "no", "logging_strategy": "no", **more},
    )  # fmt: skip


def trainer(name: str, folder: Path, **more: Any) -> tuple[transformers.Trainer, TrainerCallback]:
    callback = TrainerCallback(METHODS[name](), every=every(name))
    judged = {"eval_dataset": Texts()} if "eval_strategy" in more else {}
    return Sequential(
        model=bert(name), args=arguments(folder, **more), train_dataset=Texts(), callbacks=[callback], **judged
    ), callback


class Module(lightning.LightningModule):
    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.model = bert(name).train()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        held = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(held, lr=RATE, weight_decay=0.0)


def lit(name: str, epochs: int, more: Any = (), **settings: Any) -> tuple[lightning.Trainer, LightningCallback]:
    callback = LightningCallback(METHODS[name](), every=every(name))
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback, *more], **{"enable_checkpointing": False, **settings},
    ), callback  # fmt: skip


def alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The same decisions."""
    for key, value in wanted.items():
        assert found[key] == value or key in ("hits", "cached_bytes", "moments_bytes"), key


@pytest.mark.parametrize("name", METHODS)
def test_every_loop_decides_alike_and_trains_alike(name: str, tmp_path: Path) -> None:
    wanted, state = plain(name)
    assert state["steps"] == STEPS
    found, its = plain(name, accelerated=True)
    alike(its, state)
    made, callback = trainer(name, tmp_path)
    made.train()
    assert callback.handle is not None
    alike(callback.handle.state(), state)
    module = Module(name)
    fitted, other = lit(name, 2)
    fitted.fit(module, loader())
    assert other.handle is not None
    alike(other.handle.state(), state)
    for mine in (found, weights(made.model), weights(module.model)):
        for key, value in wanted.items():
            assert torch.allclose(mine[key].float(), value.float(), atol=1e-5), key


class Changing(Texts):
    """Other tokens at each visit, as an augmentation gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = torch.Generator().manual_seed(1)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(3, 40, (6,), generator=self.draw)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[0] > 20).long()}


def test_a_cache_learns_from_the_callback_how_long_an_epoch_is(tmp_path: Path) -> None:
    callback = TrainerCallback(METHODS["topk"]())
    with pytest.warns(ReallocWarning, match=r"RA103.*off"):  # in the second of two epochs
        Sequential(model=bert(), args=arguments(tmp_path), train_dataset=Changing(), callbacks=[callback]).train()
    fitted, _ = lit("topk", 2)
    with pytest.warns(ReallocWarning, match=r"RA103.*off"):
        fitted.fit(Module(), DataLoader(Changing(), batch_size=SIZE))


@pytest.mark.parametrize("name", METHODS)
def test_the_trainer_resumes_with_no_extra_call(name: str, tmp_path: Path) -> None:
    whole, first = trainer(name, tmp_path / "a", save_strategy="steps", save_steps=5)
    whole.train()
    again, second = trainer(name, tmp_path / "a", save_strategy="steps", save_steps=5)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert first.handle is not None and second.handle is not None
    alike(second.handle.state(), first.handle.state())
    for (key, mine), theirs in zip(weights(again.model).items(), weights(whole.model).values(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-5), key


@pytest.mark.parametrize("name", ["topk", "lisa", "adalora", "spiel", "touched_rows", "width", "loss_change", "rows"])
def test_the_best_model_is_loaded_with_its_placement(name: str, tmp_path: Path) -> None:
    made, callback = trainer(
        name, tmp_path, save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4,
        load_best_model_at_end=True,
    )  # fmt: skip
    made.train()
    best = made.state.best_model_checkpoint
    assert best is not None
    judged = made.evaluate()["eval_loss"]
    assert judged == pytest.approx(made.state.best_metric, abs=1e-4)
    assert callback.handle is not None
    callback.handle.detach()
    made.save_model(str(tmp_path / "plain"))
    if name not in ("adalora", "width", "rows"):  # no config names widths of layers, or rows that ids share
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "plain")


@pytest.mark.parametrize("name", METHODS)
def test_lightning_resumes_with_no_extra_call(name: str, tmp_path: Path) -> None:
    whole = Module(name)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=STEPS // 2, save_top_k=-1
    )
    lit_whole, first = lit(name, 2, enable_checkpointing=True, more=[keep])
    lit_whole.fit(whole, loader())
    again = Module(name)
    lit_again, second = lit(name, 2)
    lit_again.fit(again, loader(), ckpt_path=str(tmp_path / f"step={STEPS // 2}.ckpt"), weights_only=True)
    assert first.handle is not None and second.handle is not None
    alike(second.handle.state(), first.handle.state())
    for (key, mine), theirs in zip(weights(again).items(), weights(whole).values(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-5), key
    assert second.handle.steps == STEPS


@pytest.mark.parametrize("name", METHODS)
def test_accelerate_resumes_from_its_own_checkpoint(name: str, tmp_path: Path) -> None:
    """``save_state`` in the middle, ``load_state`` into a new run: the same decisions and weights."""
    wanted, state = plain(name, accelerated=True, save=tmp_path / "half")
    found, its = plain(name, accelerated=True, load=tmp_path / "half")
    alike(its, state)
    for key, value in wanted.items():
        assert torch.allclose(found[key].float(), value.float(), atol=1e-5), key


def test_methods_that_no_callback_takes_are_named() -> None:
    for kind in (TrainerCallback, LightningCallback):
        with pytest.raises(ConfigError, match=r"rs2 chooses examples, .*give it to realloc\.Visits"):
            kind(methods.rs2(0.5))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="call a recipe"):
            kind(methods.topk)  # type: ignore[arg-type]


def test_a_method_that_moves_needs_an_interval() -> None:
    for kind in (TrainerCallback, LightningCallback):
        with pytest.raises(ConfigError, match=r"lisa moves.*every=100"):
            kind(methods.lisa(2))


def test_lightning_refuses_a_second_fit_with_the_same_callback() -> None:
    module = Module()
    once, callback = lit("lisa", 2)
    once.fit(module, loader())
    before = weights(module)
    with pytest.raises(StateError, match=r"new ReallocCallback"):
        once.fit(module, loader())
    assert all(torch.equal(value, before[key]) for key, value in weights(module).items())
    assert callback.handle is not None
    callback.handle.detach()
    again, fresh = lit("lisa", 2)
    again.fit(module, loader())
    assert fresh.handle is not None and fresh.handle.steps == STEPS and fresh.handle.moves > 0


def test_lightning_without_an_end_needs_no_schedule_or_says_so() -> None:
    endless, _ = lit("lisa", -1, max_time="00:00:00:01")
    with pytest.raises(ConfigError, match=r"lisa moves by a schedule, and this run has no end .*max_steps"):
        endless.fit(Module(), loader())
    still, callback = lit("topk", -1, max_time="00:00:00:01")
    still.fit(Module(), loader())
    assert callback.handle is not None and callback.handle.steps > 0


# a second train() with one callback ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random_ranks", "lisa", "width"])
def test_a_second_train_from_the_start_is_refused_where_something_moves(name: str, tmp_path: Path) -> None:
    made, callback = trainer(name, tmp_path)
    made.train()
    assert callback.handle is not None
    moves, before = callback.handle.moves, weights(made.model)
    with pytest.raises(StateError, match=r"through 12 steps of an earlier run.*resume_from_checkpoint.*new Trainer"):
        made.train()
    assert callback.handle.steps == STEPS and callback.handle.moves == moves > 0
    assert all(torch.equal(value, before[key]) for key, value in weights(made.model).items())
    callback.handle.detach()
    with pytest.raises(StateError, match=r"its handle was detached; .* make a new Trainer"):
        made.train()
    fresh = TrainerCallback(METHODS[name](), every=every(name))
    Sequential(model=made.model, args=arguments(tmp_path), train_dataset=Texts(), callbacks=[fresh]).train()
    assert fresh.handle is not None and fresh.handle.steps == STEPS and fresh.handle.moves > 0


@pytest.mark.parametrize("name", ["random_ranks", "lisa"])
def test_a_resume_with_the_same_callback_moves_by_the_new_length(name: str, tmp_path: Path) -> None:
    """As a new Trainer with a new callback does: 12 steps, and from their last checkpoint 12 more."""
    made, callback = trainer(name, tmp_path / "a", save_strategy="steps", save_steps=STEPS)
    made.train()
    assert callback.handle is not None
    before = callback.handle.moves
    made.args.num_train_epochs = 4
    made.train(resume_from_checkpoint=True)
    assert callback.handle.steps == 2 * STEPS and callback.handle.moves > before
    again, second = trainer(name, tmp_path / "a")
    again.args.num_train_epochs = 4
    again.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{STEPS}"))
    assert second.handle is not None
    alike(second.handle.state(), callback.handle.state())
    for (key, mine), theirs in zip(weights(again.model).items(), weights(made.model).values(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-5), key


def test_what_never_moves_trains_on(tmp_path: Path) -> None:
    made, callback = trainer("topk", tmp_path)
    made.train()
    made.train()
    assert callback.handle is not None and callback.handle.steps == 2 * STEPS
    made.optimizer = None
    with pytest.raises(StateError, match=r"hangs on the optimizer of that one"):
        made.train()


def test_a_smaller_batch_after_the_memory_ran_out_makes_a_longer_schedule(tmp_path: Path) -> None:
    """``auto_find_batch_size`` begins the run anew; where no step was taken yet, the moves follow its length."""
    made, callback = trainer("random_ranks", tmp_path, auto_find_batch_size=True)
    compute, calls = made.compute_loss, []

    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory.")
        return compute(*args, **kwargs)

    made.compute_loss = out_of_memory
    made.train()
    steps = made.state.max_steps
    assert callback.handle is not None and callback.handle.steps == steps > STEPS
    assert callback.handle._engine.schedule.total == steps  # type: ignore[union-attr]
