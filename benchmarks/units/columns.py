"""Which input columns to keep: 50 pixels of Fashion-MNIST, a quarter of adult's columns; ours beside RFE and LassoNet.

    python benchmarks/units/columns.py run        # picks, then the same net retrained on what was picked; resumes
    python benchmarks/units/columns.py clock      # seconds of picking, three turns; wants a quiet machine
    python benchmarks/units/columns.py table

Every arm's columns go to the same fresh net, K-128-classes, 8 epochs; its rate is tuned for each arm on held-out rows
of seed 0. Ours pick while a net D-128-classes trains for 4 epochs, at a rate tuned by that net's own accuracy on the
held-out rows. RFE (scikit-learn) ranks by logistic regression on all training rows, and drops one column at a time on
adult, a tenth of all at a time on Fashion-MNIST, where one at a time would be 734 fits. LassoNet walks its path until
K columns are left, on 5,000 of the training rows and with larger steps and fewer epochs than its own (1.1 in place of
1.02; 20 and 5 in place of 1,000 and 100), to be affordable here; its last K columns count.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench import WORST, Arm, Kept, arguments, head, row, title
from tables import KEPT, NAMES, table
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.methods.column_method import ColumnMethod
from realloc.train.dataset import Dataset, Rows

HIDDEN, BATCH, PICKING, EPOCHS = 128, 128, 4, 8  # units, rows of a step, epochs that pick, epochs of the final net
MOVES, UNTIL = 20, 0.75
PICK_RATES, RATES = (2e-3, 4e-3), (4e-3, 8e-3)
FIXED = ("all columns", "rfe")  # no chance in them: one pick serves every seed
LASSO_ROWS = 5_000
RFE_STEP = {"fashion-mnist": 0.1, "adult": 1}
OURS: Mapping[str, Callable[[int], ColumnMethod]] = {
    "entryprune": methods.entryprune, "neurofs": methods.neurofs, "quickselection": methods.quickselection,
    "random_columns": methods.random_columns,
}  # fmt: skip
ARMS = ("all columns", *OURS, "rfe", "lassonet")
HEAD = ("arm", "columns", "rate of the pick", "rate", "test accuracy %", "minus RFE, 95 %", "minus random, 95 %",
        "seconds of the pick, during the runs")  # fmt: skip
CLOCK = ("arm", "seconds of the pick", "of RFE's")


def net(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


def fit(rows: Rows, model: nn.Module, rate: float, seed: int, epochs: int, method: ColumnMethod | None = None) -> Any:
    """Train as every arm is trained; the handle, where a method was attached."""
    steps = epochs * -(-len(rows.y) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    handle = None
    if method is not None:
        schedule = (
            realloc.every(max(1, int(UNTIL * steps) // MOVES), until=UNTIL, total=steps) if method.moves else None
        )
        handle = realloc.attach(model, optimizer, method, schedule=schedule, seed=seed)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows.y), generator=order).split(BATCH):
            loss = nn.functional.cross_entropy(model(rows.x[batch]), rows.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return handle


@torch.no_grad()
def accuracy(model: nn.Module, rows: Rows, columns: Tensor) -> float:
    """In percent."""
    return 100 * float((model(rows.x[:, columns]).argmax(1) == rows.y).double().mean())


@dataclass(frozen=True)
class Pick:
    """Which columns an arm picks, and how long it takes. ``rate`` 0: it has none."""

    data: str
    arm: str
    rate: float
    seed: int
    turn: int = 0

    def run(self) -> dict[str, Any]:
        found = table(self.data)
        torch.manual_seed(self.seed)
        began = time.perf_counter()
        held, columns = WORST, list[int]()
        if self.arm in OURS:
            model = net(found.features, found.outputs)
            handle = fit(found.train, model, self.rate, self.seed, PICKING, OURS[self.arm](KEPT[self.data]))
            columns = next(iter(handle.sites.values())).places().tolist()
        elif self.arm == "rfe":
            columns = _rfe(found, KEPT[self.data], RFE_STEP[self.data])
        elif self.arm == "lassonet":
            columns = _lassonet(found, KEPT[self.data], self.seed)
        else:
            columns = list(range(found.features))
        spent = time.perf_counter() - began
        if self.arm in OURS:
            held = accuracy(model, found.validation, torch.arange(found.features))
        return {"columns": columns, "held": held, "test": len(columns), "seconds": spent}


def _rfe(found: Dataset, keep: int, step: float) -> list[int]:
    from sklearn.feature_selection import RFE
    from sklearn.linear_model import LogisticRegression

    chosen = RFE(LogisticRegression(max_iter=100), n_features_to_select=keep, step=step)
    chosen.fit(found.train.x.numpy(), found.train.y.numpy())
    return [column for column, kept in enumerate(chosen.support_) if kept]


class Enough(Exception):
    """The path has come down to K columns."""


def _lassonet(found: Dataset, keep: int, seed: int) -> list[int]:
    from lassonet import LassoNetClassifier

    last = torch.zeros(found.features)  # the last step of the path that still had the column

    def look(model: Any, history: Sequence[Any]) -> None:
        last[history[-1].selected] = len(history)
        if int(history[-1].selected.sum()) <= keep:
            raise Enough

    path = LassoNetClassifier(
        hidden_dims=(HIDDEN,), batch_size=BATCH, path_multiplier=1.1, n_iters=(20, 5), patience=(3, 1),
        random_state=seed, torch_seed=seed, verbose=0,
    )  # fmt: skip
    rows = torch.randperm(len(found.train.y), generator=torch.Generator().manual_seed(seed))[:LASSO_ROWS]
    with contextlib.suppress(Enough):
        path.path(found.train.x[rows].numpy(), found.train.y[rows].numpy(), callback=look)
    return sorted(torch.argsort(last, descending=True, stable=True)[:keep].tolist())


PICKS = Kept("columns_picked", run=False)


@dataclass(frozen=True)
class Final:
    """The same net for every arm, on the columns that it picked."""

    data: str
    arm: str
    pick_rate: float
    rate: float
    seed: int

    def run(self) -> dict[str, Any]:
        seed = 0 if self.arm in FIXED else self.seed
        found, pick = table(self.data), PICKS.get(Pick(self.data, self.arm, self.pick_rate, seed))
        assert pick is not None
        columns = torch.tensor(pick["columns"])
        torch.manual_seed(self.seed)
        model, began = net(len(columns), found.outputs), time.perf_counter()
        fit(Rows(found.train.x[:, columns], found.train.y), model, self.rate, self.seed, EPOCHS)
        spent = time.perf_counter() - began
        return {
            "held": accuracy(model, found.validation, columns), "test": accuracy(model, found.test, columns),
            "seconds": spent, "columns": len(columns),
        }  # fmt: skip


def rates_of(name: str) -> tuple[float, ...]:
    """Of the net that picks; one rate is not tuned."""
    if name == "random_columns":
        return (1e-3,)  # what it picks does not depend on it
    return PICK_RATES if name in OURS else (0.0,)


def arm_of(kept: Kept, data: str, name: str, seeds: int) -> tuple[Arm, Arm] | None:
    """The picks of an arm and the final nets on them."""
    rates = rates_of(name)
    picks = PICKS.arm(lambda rate, seed: Pick(data, name, rate, seed), rates, 1 if name in FIXED else seeds, (0,))
    if picks is None:
        return None
    most = seeds if name in FIXED else len(picks.runs)
    final = kept.arm(lambda rate, seed: Final(data, name, picks.rate, rate, seed), RATES, most, (0,))
    return None if final is None else (picks, final)


def clock(kept: Kept, data: str) -> None:
    """Seconds of picking, arm by arm in turns; RFE's first."""
    print(f"\n### {NAMES[data]}: seconds\n\n{head(CLOCK)}")
    whole: float | None = None
    for name in ("rfe", *(one for one in OURS if one != "random_columns")):
        picks = PICKS.arm(lambda rate, seed, n=name: Pick(data, n, rate, seed), rates_of(name), 1, (0,))
        if picks is None:
            continue
        arm = kept.arm(lambda _, turn, n=name, r=picks.rate: Pick(data, n, r, 0, 1 + turn), (picks.rate,), 3)
        if arm is not None:
            whole = arm.mean("seconds") if name == "rfe" else whole
            share = f"{arm.mean('seconds') / whole:.2f}" if whole else "pending"
            print(row([name, f"{arm.seconds} (n={len(arm.runs)})", share]))


def main() -> None:
    warnings.simplefilter("ignore")  # of rankers that stop before they have converged
    args = arguments(__doc__, ARMS, ("clock",))
    run, kept = args.act == "run", Kept("columns", run=args.act == "run", beside=args.beside)
    PICKS.allow(run=run, beside=args.beside)
    print(title())
    for data in NAMES if args.act != "clock" else ():
        found = {name: both for name in args.arms if (both := arm_of(kept, data, name, args.seeds)) is not None}
        finals = {name: final for name, (_, final) in found.items()}
        print(f"\n### {NAMES[data]}\n\n{head(HEAD)}")
        for name, (picks, final) in found.items():
            gaps = [final.less(finals[rival]) if rival in finals else "" for rival in ("rfe", "random_columns")]
            cells = [name, str(final.runs[0]["columns"]), f"{picks.rate:g}" if picks.rate else "", f"{final.rate:g}"]
            print(row([*cells, f"{final.mean():.2f} (n={len(final.runs)})", *gaps, picks.seconds]))
    for data in NAMES:
        clock(Kept("columns_clock", run=args.act == "clock", beside=args.beside), data)


if __name__ == "__main__":
    main()
