"""SST-2 as frozen MiniLM features, and a small net on them that is trained on chosen visits."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.finetune.bundled import model_folder
from realloc.methods.example_method import Draw, ExampleMethod

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FEATURES = Path(tempfile.gettempdir()) / "realloc-sst2-minilm.pt"  # made once, in about three minutes
EPOCHS, HIDDEN, BATCH = 20, 128, 64
OVER = 2  # RHO's candidates for each visit
EQUAL_COST = (3 / OVER + 1) / 3  # of the visits: what RHO costs, its look at every candidate counted as a third
OTHER_HALF = 1e-3, 5  # rate and epochs of the models that say which loss cannot be reduced


@cache
def sentences() -> dict[str, tuple[Tensor, Tensor]]:
    """Of train, dev (held out: rates are tuned on it) and test: float32 [n, 384], standardised, and classes [n]."""
    if not FEATURES.exists():
        torch.save(_features(), FEATURES)
    found = torch.load(FEATURES, weights_only=True)
    mean, scale = found["train"][0].mean(0), found["train"][0].std(0)
    return {part: ((x - mean) / scale, y) for part, (x, y) in found.items()}


@torch.no_grad()
def _features() -> dict[str, tuple[Tensor, Tensor]]:
    from transformers import AutoModel, AutoTokenizer

    bundled, folder = model_folder("minilm"), Path(os.environ.get("REALLOC_DATA", SHARED))
    assert bundled is not None
    tokenizer = AutoTokenizer.from_pretrained(bundled[0], local_files_only=True)
    model = AutoModel.from_pretrained(bundled[0], local_files_only=True, dtype=torch.float32).eval()
    made = {}
    for part in ("train", "dev", "test"):
        lines = (folder / f"sst2-{part}.txt").read_text("latin-1").split("\n")
        rows = sorted((line.split(" ", 1) for line in lines if " " in line), key=lambda row: len(row[1]))
        parts = []
        for first in range(0, len(rows), 64):
            batch = tokenizer([text for _, text in rows[first : first + 64]], padding=True, return_tensors="pt",
                              truncation=True, max_length=64)  # fmt: skip
            mask = batch["attention_mask"].unsqueeze(-1).float()
            parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        made[part] = torch.cat(parts), torch.tensor([int(label) for label, _ in rows])
    return made


def _net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(384, HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, 2))


@cache
def irreducible() -> Tensor:
    """Loss of each training sentence under a net trained on the other half; float32 [n]. Charged to nobody."""
    x, y = sentences()["train"]
    rate, epochs = OTHER_HALF
    losses = torch.empty(len(y))
    halves = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).chunk(2)
    for mine, other in (halves, halves[::-1]):
        model = _net(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        for epoch in range(epochs):
            for batch in other[torch.randperm(len(other), generator=torch.Generator().manual_seed(epoch))].split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            losses[mine] = nn.functional.cross_entropy(model.eval()(x[mine]), y[mine], reduction="none")
    return losses


def method_of(arm: str, share: float) -> ExampleMethod:
    made = {
        "rs2": lambda: methods.rs2(share=share), "infobatch": lambda: methods.infobatch(share=share),
        "importance": lambda: methods.importance(share=share), "rho": lambda: methods.rho(irreducible(), over=OVER),
    }  # fmt: skip
    return made[arm]()


@dataclass(frozen=True)
class Sentences:
    arm: str
    share: float
    rate: float
    seed: int
    data: str = "sst-2"

    def run(self) -> dict[str, Any]:
        x, y = sentences()["train"]
        model, weighed = _net(self.seed), list[bool]()
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate)
        whole = int(self.share * EPOCHS * len(y))
        began, visits, steps, cost = time.perf_counter(), None, -(-whole // BATCH), 3 * whole
        if self.arm != "uniform":
            method = method_of(self.arm, self.share)

            def draw(*known: Any) -> Draw:
                drawn = method.draw(*known)
                weighed.append(bool((drawn.weight != 1).any()))
                return drawn

            visits = realloc.Visits(len(y), replace(method, draw=draw), epochs=EPOCHS, seed=self.seed)
            steps = visits.steps(BATCH * method.over)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        spent = 0
        for batch in _plain(len(y), whole, self.seed) if visits is None else _drawn(visits):
            if visits is not None and visits.method.over > 1:
                with torch.no_grad():
                    look = nn.functional.cross_entropy(model(x[batch]), y[batch], reduction="none")
                batch = batch[visits.choose(batch, look)]
            out = model(x[batch])
            losses, score = nn.functional.cross_entropy(out, y[batch], reduction="none"), None
            if visits is not None:
                score = realloc.logit_gradient(out, y[batch])
            loss = losses.mean() if visits is None else visits.loss(batch, losses, score=score)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            spent += len(batch)
        seconds, model = time.perf_counter() - began, model.eval()
        with torch.no_grad():
            held, test = (float((model(a).argmax(1) == b).double().mean()) for a, b in
                          (sentences()[part] for part in ("dev", "test")))  # fmt: skip
        cost = cost if visits is None else visits.cost
        return {"held": held, "test": test, "seconds": seconds, "visits": spent, "cost": cost, "steps": steps,
                "weighed": sum(weighed)}  # fmt: skip


def _plain(count: int, visits: int, seed: int) -> Iterator[Tensor]:
    """Every example in each epoch, until the visits are spent."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(count, generator=draw) for _ in range(-(-visits // count))])
    yield from order[:visits].split(BATCH)


def _drawn(visits: realloc.Visits) -> Iterator[Tensor]:
    for _ in range(visits.epochs):
        yield from torch.tensor(list(visits)).split(BATCH * visits.method.over)
