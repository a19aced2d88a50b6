"""Shares of learning rate between layers: each method beside uniform rates and its own shares on the wrong layers.

    python benchmarks/units/rates.py run      # tunes each rate, then five paired seeds; resumes run by run
    python benchmarks/units/rates.py table

minilm: MiniLM on two of CLINC150's domains, 30 intents, 10 training texts each, 2 epochs; its six layers and a head
train, the embeddings do not. cnn: two convolutions and two linear layers on the first 10,000 images of Fashion-MNIST, 3
epochs. AdamW, cosine. Rates by the accuracy on held-out rows of seed 0. Three controls: `uniform` at the rate of the
method, `uniform` at its own best, and the method's shares, each on another layer, at the rate of the method.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from bench import Arm, Kept, arguments, head, row, title
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.finetune.batches import Batches
from realloc.finetune.bundled import model_folder
from realloc.finetune.head import MeanHead
from realloc.methods.rate_method import RateMethod
from realloc.train import fashion_mnist, models

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DOMAINS, PER_INTENT, TOKENS = 2, 10, 32
TEXTS, IMAGES = 16, 100  # in a batch
EPOCHS = {"minilm": 2, "cnn": 3}
RATES = {"minilm": (5e-4, 1e-3, 2e-3), "cnn": (2e-3, 4e-3, 8e-3)}
NAMES = {"minilm": "MiniLM on 30 intents of CLINC150", "cnn": "A small convolutional net on Fashion-MNIST"}
DECISIONS, WINDOW, WARM = 8, 3, 0.1  # of a run: times that rates are shared, steps measured for each, share before it
METHODS: Mapping[str, Callable[[], RateMethod]] = {
    "llrd": methods.llrd,
    "auto_rgn": lambda: methods.auto_rgn(window=WINDOW),
    "gradnorm": lambda: methods.gradnorm(window=WINDOW),
    "tempbalance": methods.tempbalance,
    "loss_change": lambda: methods.loss_change(window=WINDOW),
}
ARMS = ("uniform", *METHODS)
PERMUTED = "permuted "
HEAD = ("arm", "rate", "test accuracy %", "minus uniform re-tuned, 95 %", "minus uniform at this rate, 95 %",
        "minus its shares permuted, 95 %", "shares of the last seed, from the input", "seconds")  # fmt: skip


class Task(Protocol):
    """A fresh model, batches, and accuracy in percent."""

    steps: int

    def model(self, seed: int) -> nn.Module: ...

    def loss(self, model: nn.Module, step: int) -> Tensor: ...

    def accuracy(self, model: nn.Module, part: str) -> float: ...


class Images:
    """A small convolutional net."""

    def __init__(self, seed: int) -> None:
        self._data, self._seed = _images(), seed
        self._x, self._y = self._data.train.x[:10_000], self._data.train.y[:10_000]
        self._per_epoch = len(self._y) // IMAGES
        self.steps = EPOCHS["cnn"] * self._per_epoch

    def model(self, seed: int) -> nn.Module:
        return models.build("cnn:8", self._data.features, self._data.outputs, image=self._data.image, seed=seed)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        epoch, place = divmod(step, self._per_epoch)
        order = torch.randperm(len(self._y), generator=torch.Generator().manual_seed(1000 * self._seed + epoch))
        batch = order[place * IMAGES :][:IMAGES]
        return nn.functional.cross_entropy(model(self._x[batch]), self._y[batch])

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:
        rows = self._data.test if part == "test" else self._data.validation
        right = [(model(x).argmax(1) == y).sum() for x, y in zip(rows.x.split(1000), rows.y.split(1000), strict=True)]
        return 100 * float(sum(right)) / len(rows.y)


class Texts:
    """MiniLM, a mean over tokens, and a linear layer."""

    def __init__(self, seed: int) -> None:
        self._base, self._intents, self._parts = _texts()
        rows, labels = self._parts["train"]
        self._train = Batches(rows, labels, TEXTS, seed, 0)
        self.steps = EPOCHS["minilm"] * self._train.per_epoch

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)  # of dropout
        made = MeanHead(copy.deepcopy(self._base), self._base.config.hidden_size, self._intents, seed)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_("embeddings" not in name and "pooler" not in name)
        return made

    def loss(self, model: nn.Module, step: int) -> Tensor:
        batch, labels = self._train.at(step)
        return nn.functional.cross_entropy(model(**batch), labels.long())

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:
        rows, labels = self._parts[part]
        right = 0
        for _, batch, real in Batches(rows, labels, TEXTS, 0, 0).sorted(4 * TEXTS):
            right += int((model(**batch).argmax(1) == real.long()).sum())
        return 100 * right / len(rows)


@cache
def _images() -> Any:
    return fashion_mnist.load()


@cache
def _texts() -> tuple[Any, int, dict[str, tuple[list[list[int]], Tensor]]]:
    """The pre-trained part, the number of intents, and of each part the tokens and the intents of its texts."""
    from transformers import AutoModel, AutoTokenizer

    folder = Path(os.environ.get("REALLOC_DATA", SHARED))
    domains = list(json.loads((folder / "clinc150-domains.json").read_text()).values())[:DOMAINS]
    number = {intent: place for place, intent in enumerate(one for domain in domains for one in domain)}
    found = json.loads((folder / "clinc150.json").read_text())
    bundled = model_folder("minilm")
    assert bundled is not None
    tokenizer = AutoTokenizer.from_pretrained(bundled[0], local_files_only=True)
    parts = {}
    for part, key, most in (("train", "train", PER_INTENT), ("held", "val", 10), ("test", "test", 30)):
        of: dict[str, list[str]] = {intent: [] for intent in number}
        for text, intent in found[key]:
            if intent in of and len(of[intent]) < most:
                of[intent].append(text)
        texts = [text for one in of.values() for text in one]
        labels = torch.tensor([number[intent] for intent, one in of.items() for _ in one], dtype=torch.float64)
        parts[part] = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"], labels
    base = AutoModel.from_pretrained(bundled[0], local_files_only=True, dtype=torch.float32)
    return base, len(number), parts


TASKS: Mapping[str, Callable[[int], Task]] = {"minilm": Texts, "cnn": Images}


def method_of(arm: str) -> RateMethod | None:
    if arm == "uniform":
        return None
    made = METHODS[arm.removeprefix(PERMUTED)]()
    return methods.permuted_rates(made) if arm.startswith(PERMUTED) else made


@dataclass(frozen=True)
class Case:
    data: str
    arm: str
    rate: float
    seed: int

    def run(self) -> dict[str, Any]:
        task = TASKS[self.data](self.seed)
        model = task.model(self.seed).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=self.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
        method, handle = method_of(self.arm), None
        if method is not None:
            every = realloc.every(max(1, task.steps // DECISIONS), begin=WARM, total=task.steps)
            handle = realloc.attach(model, optimizer, method, schedule=every if method.moves else None, seed=self.seed)
        began = time.perf_counter()
        for step in range(task.steps):
            optimizer.zero_grad()
            task.loss(model, step).backward()
            optimizer.step()
            falling.step()
        spent = time.perf_counter() - began
        shares = {} if handle is None else {"shares": list(handle.rates.values()), "moves": handle.moves}
        model.eval()
        held, test = task.accuracy(model, "held"), task.accuracy(model, "test")
        return {"held": held, "test": test, "seconds": spent} | shares


def show(kept: Kept, data: str, names: list[str], seeds: int) -> None:
    """Runs what is missing, and prints the table of one task."""

    def arm_of(name: str, rates: tuple[float, ...]) -> Arm | None:
        return kept.arm(lambda rate, seed: Case(data, name, rate, seed), rates, seeds, (0,))

    uniform = arm_of("uniform", RATES[data])
    lines = []
    for name in names:
        arm = uniform if name == "uniform" else arm_of(name, RATES[data])
        if arm is None:
            continue
        gaps, shares = ["", "", ""], ""
        if arm is not uniform:
            rivals = (uniform, arm_of("uniform", (arm.rate,)), arm_of(PERMUTED + name, (arm.rate,)))
            gaps = ["" if rival is None else arm.less(rival) for rival in rivals]
            shares = " ".join(f"{share:.2f}" for share in arm.runs[-1]["shares"])
        cells = [name, f"{arm.rate:g}", f"{arm.mean():.2f} (n={len(arm.runs)})", *gaps, shares, arm.seconds]
        lines.append(row(cells))
    print("\n".join([f"\n### {NAMES[data]}\n", head(HEAD), *lines]))


def main() -> None:
    args = arguments(__doc__, ARMS)
    kept = Kept("rates", run=args.act == "run", beside=args.beside)
    print(title())
    for data in NAMES:
        show(kept, data, args.arms, args.seeds)


if __name__ == "__main__":
    main()
