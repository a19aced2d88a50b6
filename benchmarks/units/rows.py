"""Embedding rows at 2 to 50 % of the full table's bytes, moments and sketch counted: each score beside its controls.

    python benchmarks/units/rows.py run        # tunes each arm's rate at each size, then five paired seeds; resumes
    python benchmarks/units/rows.py table

One table holds users and items. 64 hidden units read both rows and their product and foretell the rating; AdamW, 6
epochs, the learning rate falls as a cosine. The epoch and the rate are those of the least RMSE on a held-out tenth of
the ratings (rates: seed 0); another tenth is the test. REALLOC_DATA may name the folder of book_crossing.zip.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench import WORST, Arm, Kept, arguments, head, row, title
from ratings import NAMES, Ratings, ratings
from scipy.stats import rankdata
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.errors import ConfigError
from realloc.nn.budget import Costs, bytes_of

DIM, HIDDEN, START = 16, 64, 0.1  # numbers in a row, units above, spread of the start values
EPOCHS, BATCH, PRUNED_AFTER = 6, 1024, 4  # epochs with every row, of the arm that prunes
ORDER = (10.0, 5.0, 25.0, 2.0, 50.0)  # of the full table's bytes, in the order of the runs
WHOLE = 100.0
RATES = (4e-3, 8e-3)
ID = 8  # bytes: rows that are kept by their ids need the ids
SCORES = ("frequency", "gradient", "product", "conflict", "random")
LOOKS = {score: (score, 2) for score in SCORES}  # the score of an arm, and of how many steps one is noted
LOOKS |= {f"{score}, look=4": (score, 4) for score in ("gradient", "product", "conflict")}
CONTROLS = ("hashing", "frequency")
ARMS = ("full", "hashing", "quotient-remainder", "double hashing", "pruned", *LOOKS)
HEAD = ("bytes", "arm", "rate", "RMSE", "minus hashing, 95 %", "minus frequency, 95 %", "AUC %",
        "minus hashing, 95 %", "minus frequency, 95 %", "bytes held", "of", "owned", "seconds")  # fmt: skip


class Pruned(nn.Module):
    """A full table, until `prune` leaves the rows of the largest norm; all other ids read zeros."""

    def __init__(self, ids: int, budget: int) -> None:
        super().__init__()
        self.rows, self.most = nn.Embedding(ids, DIM), budget // (Costs(DIM, 4, 2, 0).row + ID)
        self.register_buffer("kept", torch.ones(ids, 1))

    @property
    def weight(self) -> nn.Parameter:
        return self.rows.weight

    @torch.no_grad()
    def prune(self) -> None:
        self.kept.zero_()
        self.kept[self.weight.norm(dim=1).topk(self.most).indices] = 1

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(ids) * self.kept[ids]


class Net(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table
        self.head = nn.Sequential(nn.Linear(3 * DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, pairs: Tensor) -> Tensor:
        user, item = self.table(pairs).unbind(1)
        return self.head(torch.cat([user, item, user * item], 1)).squeeze(1)


def table_of(arm: str, ids: int, percent: float) -> nn.Module:
    rows, spread = f"{percent:g}%", START
    if arm == "full":
        table: Any = nn.Embedding(ids, DIM)
    elif arm == "pruned":
        table = Pruned(ids, bytes_of(rows, Costs(DIM, 4, 2, 0), ids))
    elif arm == "quotient-remainder":
        table, spread = realloc.nn.QuotientRemainder(ids, DIM, rows), START**0.5  # of two factors
    elif arm == "double hashing":
        table, spread = realloc.nn.DoubleHashing(ids, DIM, rows), START**0.5
    else:
        own, directions = (0.0, 0) if arm == "hashing" else (0.5, 8 * arm.startswith("conflict"))
        table = realloc.nn.Embedding(ids, DIM, rows, own=own, directions=directions)
    with torch.no_grad():
        table.weight.mul_(spread)
    return table


def bytes_held(arm: str, table: Any, ids: int, percent: float) -> dict[str, int]:
    """What the arm holds of its budget. The two add up to the byte, or this fails."""
    costs = Costs(DIM, 4, 2, 0)
    if arm == "full":
        return {"budget": ids * costs.row, "held_bytes": ids * costs.row}
    budget = bytes_of(f"{percent:g}%", costs, ids)
    if arm == "pruned":
        return {"budget": budget, "held_bytes": table.most * (costs.row + ID), "while_training": ids * costs.row}
    store = table if arm in ("quotient-remainder", "double hashing") else table.store
    assert store.budget == budget == store.held + store.parked
    return {"budget": budget, "held_bytes": store.held}


def one_epoch(net: nn.Module, found: Ratings, order: torch.Generator, optimizer: Any, falling: Any) -> None:
    """Every training rating once, in an order that is drawn."""
    for batch in torch.randperm(len(found.train), generator=order).split(BATCH):
        loss = nn.functional.mse_loss(net(found.pairs[found.train[batch]]), found.values[found.train[batch]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


@dataclass(frozen=True)
class Case:
    data: str
    arm: str
    percent: float
    rate: float
    seed: int
    migrate: bool = True

    def run(self, watch: Callable[[Net, Any, Any], Callable[[], None]] | None = None) -> dict[str, Any]:
        found = ratings(self.data)
        torch.manual_seed(self.seed)
        net = Net(table_of(self.arm, found.ids, self.percent))
        steps = EPOCHS * -(-len(found.train) // BATCH)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        schedule = realloc.every(max(1, steps // 30), until=0.75, total=steps)
        after = watch(net, optimizer, schedule) if watch is not None else None  # its hook stands before ours
        handle = None
        if self.arm in LOOKS:
            score, look = LOOKS[self.arm]
            method = methods.rows(score, migrate=self.migrate, look=look)
            handle = realloc.attach(net, optimizer, method, schedule=schedule, seed=self.seed)
        if after is not None:
            optimizer.register_step_post_hook(lambda *_: after())
        order = torch.Generator().manual_seed(self.seed)
        best: dict[str, float] = {"held": WORST, "test": float("nan")}
        began, spent = time.perf_counter(), 0.0
        for epoch in range(EPOCHS):
            one_epoch(net, found, order, optimizer, falling)
            spent, paused = spent + time.perf_counter() - began, self.arm == "pruned" and epoch + 1 < PRUNED_AFTER
            if self.arm == "pruned" and epoch + 1 == PRUNED_AFTER:
                net.table.prune()
            if not paused and (held := -judged(net, found, found.held)["rmse"]) > best["held"]:
                best = {"held": held, "epoch": epoch + 1} | judged(net, found, found.test)
            began = time.perf_counter()
        owned = {} if handle is None else {"owned": handle.owned_rows, "moves": handle.moves}
        return best | {"test": best.get("rmse", float("nan")), "seconds": spent} | owned | bytes_held(
            self.arm, net.table, found.ids, self.percent
        )  # fmt: skip


@torch.no_grad()
def judged(net: Net, found: Ratings, rows: Tensor) -> dict[str, float]:
    """RMSE in ratings; and how often a rating of 4 and more is foretold above one of less (AUC), in percent."""
    foretold, real = net(found.pairs[rows]), found.values[rows]
    rmse = found.scale * nn.functional.mse_loss(foretold, real).sqrt().item()
    good = found.good[rows].numpy()
    ranks, count = rankdata(foretold.numpy()), int(good.sum())
    auc = (ranks[good].sum() - count * (count + 1) / 2) / (count * (len(good) - count))
    return {"rmse": rmse if rmse == rmse else -WORST, "auc": 100 * float(auc)}


def arms_of(kept: Kept, data: str, percent: float, names: Sequence[str], seeds: int) -> dict[str, Arm]:
    found: dict[str, Arm] = {}
    for name in names:
        try:
            arm = kept.arm(lambda rate, seed, n=name: Case(data, n, percent, rate, seed), RATES, seeds, (0,))
        except ConfigError as error:
            print(f"{data}, {percent:g} %: {name} cannot be built: {error}\n", flush=True)
            continue
        if arm is not None:
            found[name] = arm
    return found


def show(data: str, found: dict[float, dict[str, Arm]]) -> None:
    print(f"\n### {NAMES[data]}\n\n{head(HEAD)}")
    for percent, arms in found.items():
        for name, arm in arms.items():
            rivals = [None if percent == WHOLE else arms.get(rival) for rival in CONTROLS]
            gaps = [arm.less(rival, "rmse", places=4) if rival else "" for rival in rivals]
            liked = ["", "", ""]  # of Book-Crossing only the RMSE was asked for
            if data == "movielens":
                liked = [f"{arm.mean('auc'):.2f}", *(arm.less(rival, "auc") if rival else "" for rival in rivals)]
            one = arm.runs[-1]
            print(row([
                f"{percent:g} %", name, f"{arm.rate:g}", f"{arm.mean('rmse'):.4f} (n={len(arm.runs)})", *gaps, *liked,
                f"{one['held_bytes']:,}", f"{one['budget']:,}",
                f"{one['owned']:,}" if "owned" in one else "", arm.seconds,
            ]))  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")  # a control that moves nothing says so, each time
    args = arguments(__doc__, ARMS)
    kept = Kept("rows", run=args.act == "run", beside=args.beside)
    found: dict[str, dict[float, dict[str, Arm]]] = {data: {} for data in NAMES}
    for percent in (WHOLE, *ORDER):
        for data, sizes in found.items():
            names = [name for name in args.arms if (name == "full") == (percent == WHOLE)]
            sizes[percent] = arms_of(kept, data, percent, names, args.seeds)
    print(title())
    for data, sizes in found.items():
        show(data, dict(sorted(sizes.items())))


if __name__ == "__main__":
    main()
