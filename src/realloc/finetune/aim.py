"""What is trained and how it is judged: classes, numbers, or the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.finetune.batches import Batch, Batches
from realloc.finetune.config import Task

JUDGED: Final = 64  # rows in a batch that is only judged


@final
@dataclass(frozen=True)
class Aim:
    """The loss of a task. ``mean`` and ``scale`` standardise numbers; a model foretells them standardised."""

    task: Task
    mean: float = 0.0
    scale: float = 1.0

    def standardised(self, labels: Tensor) -> Tensor:
        """Labels of a regression ``[b]`` as a model foretells them, in float32.

        >>> Aim("regression", mean=1e8, scale=0.25).standardised(torch.tensor([1e8 + 0.5], dtype=torch.float64))
        tensor([2.])
        """
        return ((labels.double() - self.mean) / self.scale).float()

    def losses(self, model: nn.Module, batch: Batch, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss of each row ``[b]``, and what was foretold."""
        if self.task == "causal-lm":
            return _next_token(model(**batch).logits, batch), None
        out = model(**batch)
        if self.task == "regression":
            foretold = out.squeeze(1)
            return (foretold - self.standardised(labels)).square(), foretold
        return nn.functional.cross_entropy(out, labels.long(), reduction="none"), out.argmax(1)

    @torch.no_grad()
    def judge(self, model: nn.Module, batches: Batches) -> Judged:
        """Loss of each row, and the metric, in eval mode; leaves the model in the mode it was in."""
        training = model.training
        model.eval()
        losses = torch.zeros(len(batches.rows))
        foretold = torch.zeros(len(batches.rows))
        for index, batch, labels in batches.sorted(JUDGED):
            loss, found = self.losses(model, batch, labels)
            losses[index] = loss.float()
            if found is not None:
                foretold[index] = found.float()
        model.train(training)
        return Judged(losses, self._metric(losses, foretold, batches.labels))

    def _metric(self, losses: Tensor, foretold: Tensor, labels: Tensor) -> dict[str, float]:
        found: dict[str, Any] = {"loss": float(losses.mean())}
        if self.task == "text-classification":
            found["accuracy"] = float((foretold == labels).float().mean())
        if self.task == "regression":
            found["rmse"] = float(losses.mean().sqrt()) * self.scale
        return found


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """Loss row by row, and what is reported: loss, and accuracy or rmse (in the labels' own unit)."""

    losses: Tensor
    metrics: dict[str, float]


def _next_token(logits: Tensor, batch: Batch) -> Tensor:
    """Mean loss of the tokens of each row but the first."""
    target, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].float()
    loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), target, reduction="none")
    out: Tensor = (loss * mask).sum(1) / mask.sum(1).clamp(min=1)
    return out
