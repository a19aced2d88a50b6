"""A callback for the Trainer of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realloc.errors import StateError
from realloc.integrations.adapter import check_peft, keep_adapter
from realloc.integrations.plan import AnyHandle, AnyMethod, Terms, epoch_over
from realloc.pool.groups import inner
from realloc.record.sink import Sink


@final
class ReallocCallback(TrainerCallback):  # type: ignore[misc]
    """Let a budget move inside an unchanged ``Trainer``.

    The model is prepared when the Trainer is made, so that its optimizer, its checkpoints,
    ``resume_from_checkpoint`` and ``load_best_model_at_end`` see the prepared model and need no extra call. Hooks go on
    when training begins. ``handle`` is what `realloc.attach` returns; `handle.detach()` gives the plain model back.

    A model of `peft.get_peft_model` saves through its adapter, so its `save_pretrained` and `load_adapter` become ours:
    ``save_model`` and every checkpoint hold an adapter that stock peft loads, and beside it ``realloc_state.*``, from
    which the Trainer goes on. Ranks: `peft` models with plain LoRA; layers: any `peft` model. After `handle.detach()`
    the ranks are in the weights: ``model.merge_and_unload().save_pretrained(folder)``.

    Args:
        method: from `realloc.methods`.
        every: optimizer steps between moves; None for methods that never move.
        begin, until: as in `realloc.every`, an int is a step, a float a share of the run.
        seed: of start places and random choices.
        record: a path to an event log, or an object with ``decision(event)``.

    Raises:
        ConfigError: a method that moves without ``every``; when the Trainer is made, a `peft` model whose adapter
            could not hold what moves.
        StateError: a second ``train()`` that begins anew, with a method that moves (one that resumes from a checkpoint
            goes on, by the new number of steps), after `handle.detach()`, or with another optimizer.

    Example::

        trainer = Trainer(model, args, train_dataset=texts, callbacks=[ReallocCallback(methods.topk(2))])
        trainer.train()
        trainer.save_model("plain")  # after callback.handle.detach()
    """

    def __init__(
        self,
        method: AnyMethod,
        *,
        every: int | None = None,
        begin: int | float = 0,
        until: int | float = 1.0,
        seed: int = 0,
        record: Sink | str | Path | None = None,
    ) -> None:
        self.terms = Terms(method, every, begin, until, seed, record)
        self.handle: AnyHandle | None = None
        self._optimizer: torch.optim.Optimizer | None = None  # on which the handle hangs

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The Trainer is made: prepare its model."""
        model = kwargs.get("model")
        if model is None:
            raise StateError("this Trainer has no model yet (model_init?); give it the model itself")
        through_adapter = check_peft(model, self.terms.method)
        self.terms.prepare(model)
        if through_adapter:
            keep_adapter(model, self.terms.method)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Optimizer and checkpoint are there: hook them, or go on with what is hooked."""
        optimizer = inner(kwargs["optimizer"])
        if self.handle is None:
            loader = kwargs.get("train_dataloader")
            self.handle = self.terms.attach(kwargs["model"], optimizer, state.max_steps, loader)
            self._optimizer = optimizer
            return
        attached = self.handle._engine.tie.attached
        if optimizer is not self._optimizer or not attached:
            what = "hangs on the optimizer of that one" if attached else "was detached"
            raise StateError(
                f"this callback has been through a train(), and its handle {what}; take the model as handle.detach() "
                "gives it back and make a new Trainer with a new ReallocCallback, or with none"
            )
        self.terms.go_on(self.handle, state.global_step, state.max_steps)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whether a cache pays is judged by whole epochs."""
        epoch_over(self.handle, kwargs.get("train_dataloader"))
