"""A callback for the Trainer of Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import lightning
from torch import nn

from realloc.errors import ConfigError, StateError
from realloc.integrations.plan import AnyHandle, AnyMethod, Terms, epoch_over
from realloc.record.sink import Sink


@final
class ReallocCallback(lightning.Callback):  # type: ignore[misc]
    """Let a budget move inside an unchanged Lightning ``Trainer``.

    What is attached is the model inside the module, where the module is a shell around one: its only part with
    parameters. Names are then those of a loop of one's own, and so are random choices, which follow names. Where the
    method's patterns begin with the name of that part (``on("model.*")``), the module itself is attached.

    The module is prepared in ``setup``, before its optimizers are configured and before a checkpoint is restored, so
    that ``fit(ckpt_path=...)`` needs no extra call. ``handle`` is what `realloc.attach` returns.

    Args:
        method: from `realloc.methods`.
        every: optimizer steps between moves; None for methods that never move.
        begin, until: as in `realloc.every`.
        seed: of start places and random choices.
        record: a path to an event log, or an object with ``decision(event)``.

    Raises:
        ConfigError: a method that moves without ``every``, or in a run without an end (``max_epochs=-1``), or a module
            with several optimizers.
        StateError: a second fit with the same callback; each fit makes new optimizers, so it takes a new one.
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

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before the optimizers are made."""
        if stage != "fit":
            return
        if self.handle is not None:
            raise StateError(
                "this callback has been through a fit, and its handle hangs on the optimizer of that one; call its "
                "handle.detach() and give the Trainer a new ReallocCallback, or go on from a checkpoint: a new module, "
                "a new callback and fit(ckpt_path=...)"
            )
        self.terms.prepare(_inside(pl_module, self.terms.method))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Optimizer and checkpoint are there: hook them."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(f"the module has {len(trainer.optimizers)} optimizers; one budget needs one optimizer")
        total = trainer.estimated_stepping_batches
        model = _inside(pl_module, self.terms.method)
        self.handle = self.terms.attach(model, trainer.optimizers[0], total, trainer.train_dataloader)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Whether a cache pays is judged by whole epochs."""
        epoch_over(self.handle, trainer.train_dataloader)


def _inside(module: nn.Module, method: AnyMethod) -> nn.Module:
    """The only part of a module with parameters, or the module itself."""
    parts = [(name, part) for name, part in module.named_children() if next(part.parameters(), None) is not None]
    if len(parts) != 1 or any(parameter is not None for parameter in module._parameters.values()):
        return module
    (name, part), where = parts[0], getattr(method, "where", None)
    patterns = [*(getattr(where, "layers", None) or ()), *(getattr(where, "exclude", None) or ())]
    patterns += [*(getattr(where, "train", None) or ()), *(getattr(method, "tables", None) or ())]
    return module if any(str(pattern).startswith(f"{name}.") for pattern in patterns) else part
