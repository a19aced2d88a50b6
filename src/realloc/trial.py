"""Trying other layers for a while: everything is taken back, or taken over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, final

from torch import Tensor, nn

from realloc.cache.prefix import Prefix
from realloc.errors import ConfigError, StateError, nearest, plain
from realloc.layer_checks import check_held
from realloc.methods.layers import Chosen
from realloc.pool.rows import pools_of
from realloc.pool.snapshot import Snapshot, put, put_buffers, put_gradients, take_gradients, taken

if TYPE_CHECKING:
    from realloc.layers import LayerEngine


@final
@dataclass(frozen=True, eq=False)
class Start:
    """What is put back after a trial; ``pending``: gradients that no step had taken yet."""

    trained: Snapshot
    buffers: dict[str, Tensor]
    prefix: Prefix | None
    pending: dict[str, Tensor]


@final
class Trial(AbstractContextManager["Trial"]):
    """What `LayerHandle.trial` returns. Inside ``with`` other layers train; after it all is as before, bit for bit.

    It begins without gradients; those that were pending are there again after it, and `adopt` drops them.
    ``adopt()`` takes over, also some steps later, what the trial found: its layers, their weights and moments.
    Random numbers are torch's and are not put back: draw inside ``torch.random.fork_rng()`` where that matters.
    """

    def __init__(self, engine: LayerEngine, layers: Chosen) -> None:
        self._engine = engine
        self.layers = layers
        self.end: Snapshot | None = None  # what it found
        self._start: Start | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains in the trial, or trains now, by name."""
        engine = self._engine
        inside = {id(p) for layer in self.layers for p in engine.layers[layer]}
        if engine.ledger.trains_below(self.layers):
            inside |= {id(p) for p in engine.below}
        return {name: p for name, p in engine.owner.named_parameters() if p.requires_grad or id(p) in inside}

    def __enter__(self) -> Self:
        engine = self._engine
        engine.require()
        if engine.trying:
            raise StateError("a trial runs already; leave it first")
        if pools_of(engine.owner) and any(map(engine.ledger.trains_below, (self.layers, engine.rights.on))):
            raise StateError(
                "the embeddings train in a pool of rows, whose ids a trial cannot take back; detach() the handle of "
                "the rows first, or leave the lowest layer out of both"
            )
        passage = engine.passage
        buffers = {name: b.clone() for name, b in engine.owner.named_buffers()}
        prefix = None if passage is None else passage.aside()
        pending = take_gradients(engine.owner)
        self._start = Start(taken(self.parameters, engine.optimizer), buffers, prefix, pending)
        engine.trying = True
        engine.rights.give(self.layers)
        engine.enact()
        return self

    def __exit__(self, *error: object) -> None:
        engine, start = self._engine, self._started()
        parameters = {name: p for name, p in engine.owner.named_parameters() if name in start.trained.values}
        self.end = taken(parameters, engine.optimizer)
        put_buffers(start.buffers, engine.owner)
        put(start.trained, parameters, engine.optimizer)  # before the prefix, whose weights are looked at then
        if engine.passage is not None and start.prefix is not None:
            engine.passage.put_back(start.prefix)
        engine.trying = False
        engine.enact()
        put_gradients(start.pending, engine.owner)  # last: what is frozen again has lost its gradient by then
        self._start = None

    def adopt(self) -> None:
        """Let the trial's layers train from now on, with the weights and moments that it ended with.

        Raises:
            StateError: it was not run to its end.
        """
        if self.end is None:
            raise StateError("the trial has not ended yet: leave its `with` block first")
        parameters = dict(self._engine.owner.named_parameters())
        put(self.end, {name: parameters[name] for name in self.end.values}, self._engine.optimizer)
        self._engine.direct(self.layers)  # last: what is frozen by it is looked at as it is now

    def _started(self) -> Start:
        if self._start is None:
            raise StateError("the trial has not begun: use it as `with handle.trial(layers) as trial:`")
        return self._start

    # for a checkpoint -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What it found, as plain data and tensors."""
        end = self.end
        return {"layers": list(self.layers), "values": dict(end.values) if end else {},
                "moments": {k: dict(v) for k, v in end.moments.items()} if end else {}}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.layers = tuple(state["layers"])
        self.end = Snapshot(state["values"], state["moments"])


def numbered(engine: LayerEngine, layers: Sequence[str | int]) -> Chosen:
    """Layers by name or number, from the input, as sorted numbers.

    Raises:
        ConfigError: none, an unknown one, one that was frozen before `attach`, or that the optimizer does not hold.
        StateError: the method moves by itself, or several processes train.
    """
    names = engine.blocks.names
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ConfigError(f"layers are {layers!r}; give names or numbers, such as {list(names[-2:])}")
    found = set()
    for layer in layers:
        if isinstance(layer, str) and layer in names:
            found.add(names.index(layer))
        elif isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < len(names):
            found.add(layer)
        else:
            raise ConfigError(f"no layer {plain(str(layer))!r} among {len(names)}{nearest(str(layer), names)}")
    if engine.method.moves:
        raise StateError(f"{engine.method.name} chooses by itself; attach topk, or another method that never moves")
    if engine.ranks.several:
        raise StateError("DDP reads once which parameters train; choose the layers before the model is wrapped")
    check_held(engine, sorted(found))
    return tuple(sorted(found))
