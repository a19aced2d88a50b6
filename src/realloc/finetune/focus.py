"""focus: measure first which layers the task needs, on this data and this machine; then train only those."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.allocate.prefix import Depths
from realloc.cache.known import Known
from realloc.depths import compare_depths, pooled_depths
from realloc.finetune.batches import Batch, Batches
from realloc.finetune.weights import Loaded
from realloc.modes import as_it_was
from realloc.sites.blocks import blocks_of

FIRST: Final = 512  # texts of the first probe; doubled until the depths are told apart
KEPT: Final = 200_000_000  # bytes of what the probes computed, until it is known from which depth it is read
TIMES: Final = 4  # of two, the faster foretold LoRA's seconds up to a fifth too high
TIMED: Final = 12  # texts of the cost table: their products are as quick, a token, as a whole batch's
GAIN: Final = 1.2  # how much faster bfloat16 must be to be used
OVERHEAD: Final = 1.15  # of a step with adapters or with a cache, over its bare products
ABOVE: Final = 1.2  # of a step above a cache, over the same share of LoRA's: look-ups, and gradients of whole weights
CLOSER: Final = 1.3  # of the same, over bare products that were timed with those gradients: look-ups, and the optimizer
MOST: Final = 4  # times the epochs asked for
LEAST: Final = 0.9  # the same, where that keeps within the share
HALF: Final = 0.42  # of LoRA's seconds, foretold within a fifth: at the most half, where the share does not do
SHORT: Final = 0.75  # of the epochs asked for, at the least where it has to keep within that
PROBING: Final = 0.2  # of a budget of seconds that measuring and probing may take
MORE: Final = 1.5  # times the forward that a probed text takes: fitting, and what is stored of it
FEW: Final = 128  # texts, fewer of which tell no depths apart
TWO: Final = 2  # layers that a rate is given for: what k layers change adds up as the root of k (docs/adr/0018)


@final
@dataclass(frozen=True)
class Costs:
    """A cost table: seconds of one batch of a known number of tokens on this machine."""

    tokens: int
    step: float  # forward, and the gradient of the activations through all layers: what LoRA cannot do without
    forward: float
    low: float  # forward in bfloat16

    def lora(self, tokens: int) -> float:
        """Seconds that LoRA takes for so many tokens."""
        return OVERHEAD * self.step * tokens / self.tokens

    @property
    def compute(self) -> str:
        """The faster way to run a frozen prefix."""
        return "bfloat16" if self.forward > GAIN * self.low else "float32"

    @property
    def fastest(self) -> float:
        """Seconds of a forward by that way."""
        return self.low if self.compute == "bfloat16" else self.forward


@final
@dataclass(frozen=True)
class Choice:
    """What focus decides before it trains. The top ``k`` of the ``kept`` lowest layers train, the rest is dropped.

    ``k`` None: no layer can be frozen, and uniform LoRA is used. ``rate``: times the rate that is right for two layers.
    """

    k: int | None
    kept: int | None
    epochs: float
    compute: str
    depths: Depths | None  # None: the seconds paid for no probe
    costs: Costs
    rate: float
    lora_seconds: float  # predicted, for the epochs asked for
    why: str


@final
@dataclass(frozen=True)
class Bounds:
    """What a run may take."""

    seconds: float = math.inf  # of the whole run, where they are the budget; a part of them is for deciding
    cache: float = math.inf  # bytes


FREE: Final = Bounds()


def measure(loaded: Loaded, batches: Batches, seconds: float = math.inf) -> Costs:
    """Time a few texts of middling length, some times over: the fastest counts. Leaves the model as it was.

    ``seconds``: after so many nothing is timed once more.
    """
    until = time.perf_counter() + seconds
    base, (ids, mask) = loaded.base, _middle(batches)
    with as_it_was(base):
        base.requires_grad_(False)
        base.train()  # dropout takes its time too
        step = _fastest(lambda: _both_ways(base, ids, mask), TIMES, until)
        base.eval()
        with torch.no_grad():
            forward = _timed(lambda: base(input_ids=ids, attention_mask=mask))
            low = _fastest(lambda: _low(base, ids, mask), 2, until)
    return Costs(int(mask.sum()), step, forward, low)


def _middle(batches: Batches) -> tuple[Tensor, Tensor]:
    """Ids and mask of a few texts of middling length."""
    batch, _ = batches.middling(TIMED)
    return batch["input_ids"], batch["attention_mask"]


def _whole(loaded: Loaded, batches: Batches) -> float:
    """Seconds of the same texts forward and back through all layers, with the gradients of their weights."""
    base, (ids, mask) = loaded.base, _middle(batches)
    with as_it_was(base):
        base.train()
        weights = [p.requires_grad_() for block in blocks_of(base).modules for p in block.parameters()]
        return _fastest(lambda: _both_ways(base, ids, mask, weights), TIMES)


def _both_ways(base: Any, ids: Tensor, mask: Tensor, weights: Sequence[Tensor] = ()) -> None:
    embedded = base.get_input_embeddings()(ids).detach().requires_grad_()
    out = base(inputs_embeds=embedded, attention_mask=mask)[0].sum()
    torch.autograd.grad(out, [embedded, *weights], allow_unused=True)


def _low(base: Any, ids: Tensor, mask: Tensor) -> None:
    with torch.autocast(ids.device.type, torch.bfloat16):
        base(input_ids=ids, attention_mask=mask)


def _timed(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _fastest(act: Callable[[], Any], times: int, until: float = math.inf) -> float:
    """Of so many times, or of as many as there is time for; of one at least."""
    found = _timed(act)
    for _ in range(times - 1):
        if time.perf_counter() > until:
            break
        found = min(found, _timed(act))
    return found


def _uncached(loaded: Loaded, batches: Batches, limit: float) -> float:
    """Tokens that find no room in a cache, and are computed anew in each epoch."""
    width = getattr(loaded.base.config, "hidden_size", 0)
    return max(0.0, batches.tokens - limit / (2 * width)) if width else 0.0


def choose(
    loaded: Loaded,
    batches: Batches,
    epochs: float,
    share: float,
    targets: Tensor,
    judged: int = 0,
    known: Known | None = None,
    bounds: Bounds = FREE,
) -> Choice:
    """Decide what trains and for how long.

    Args:
        loaded: the model, which is left as it was.
        batches: the training texts.
        epochs: that LoRA would be given.
        share: of LoRA's predicted seconds that may be spent, all included.
        targets: of the training texts, as a probe takes them.
        judged: tokens of the held-out texts, which are judged once at the end.
        known: takes what the probes computed at the depth from which training starts.
        bounds: of what may be spent.
    """
    began = time.perf_counter()
    costs = measure(loaded, batches, PROBING * bounds.seconds)
    known = Known(KEPT) if known is None else known
    depths = _probed(loaded, batches, targets, costs, known, began + PROBING * bounds.seconds)
    known.only(0 if depths is None else depths.frozen)
    layers = len(blocks_of(loaded.base))
    lora = costs.lora(batches.tokens) * epochs
    if depths is None or not depths.frozen:
        why = _why_all(depths, len(batches.rows), bounds)
        return Choice(None, None, epochs, costs.compute, depths, costs, 1.0, lora, why)
    k = depths.kept - depths.frozen
    spent = time.perf_counter() - began
    token = costs.fastest / costs.tokens * depths.frozen / layers  # seconds of the frozen layers
    prefix = token * batches.tokens * (1 - len(known) / len(batches.rows))
    anew = token * _uncached(loaded, batches, bounds.cache)  # each epoch
    units = 3 * k - 1  # the lowest layer that trains needs no gradient of what enters it
    epoch = ABOVE * units / (2 * layers) * costs.lora(batches.tokens) + anew
    judging = costs.forward / costs.tokens * judged
    fits = (share * lora - spent - prefix - judging) / epoch
    chosen = min(MOST * epochs, fits)
    if fits < LEAST * epochs and math.isinf(bounds.seconds):  # within half of LoRA's, by a closer look at a step
        whole = _whole(loaded, batches)
        epoch = CLOSER * (k * whole - (costs.step - costs.forward)) / layers * batches.tokens / costs.tokens + anew
        spent = time.perf_counter() - began
        half = (HALF * lora - spent - prefix - judging) / epoch
        chosen = min(epochs, max(SHORT * epochs, half))
    kept = depths.kept if depths.kept < layers else None
    return Choice(k, kept, chosen, costs.compute, depths, costs, math.sqrt(TWO / k), lora, _why(depths, k))


def _why(depths: Depths, k: int) -> str:
    above = depths.layers - depths.kept
    dropped = f", the {above} above depth {depths.kept}, which knows less, dropped" if above else ""
    return (
        f"depth {depths.best} of {depths.layers} knows most of the labels: the {depths.frozen} lowest layers are frozen"
        f"{dropped}; {k} train"
    )


def _why_all(depths: Depths | None, texts: int, bounds: Bounds) -> str:
    if depths is None:
        return f"{bounds.seconds:g} seconds do not pay for a look at the layers: every layer trains"
    if depths.examples < texts and not depths.separated:
        return f"{depths.examples:,} texts, as many as the seconds pay for, tell no depths apart: every layer trains"
    return "no depth surely knows more of the labels than the embeddings do: every layer must train"


def _probed(
    loaded: Loaded, batches: Batches, targets: Tensor, costs: Costs, known: Known, until: float
) -> Depths | None:
    """Probe a sample, and twice as many texts as long as the depths are not told apart and there is time.

    ``until``: on the clock, by which it has to be over. None: there is no time for a look at `FEW` texts.
    """
    order: list[int] = []
    features: list[Tensor] = []
    found: Depths | None = None
    whole, fit = len(batches.rows), 0.0  # seconds that a text takes in a fit of all
    text = MORE * costs.fastest * batches.tokens / (costs.tokens * whole)  # and that one takes to be computed
    count = min(FIRST, whole)
    while found is None or not (found.separated or found.examples == whole):
        began, before = time.perf_counter(), len(order)
        fits = before + max(0.0, until - began - before * fit) / (text + fit)
        if fits < count:
            count = int(fits)
            if count - before < FEW:
                break
        rows: list[Batch] = []
        for index, batch, _ in batches.sorted(64, slice(before, count)):
            order += index
            rows.append(batch)
        features.append(pooled_depths(loaded.model, rows, compute=costs.compute, known=known))
        text = (time.perf_counter() - began) / (count - before)
        began = time.perf_counter()
        found = compare_depths(torch.cat(features), targets[order])
        fit = (time.perf_counter() - began) / count
        count = min(2 * count, whole)
    return found
