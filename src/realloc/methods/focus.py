"""The layers that probes of each depth point at train; the rest is a frozen prefix whose output is computed once."""

from __future__ import annotations

from realloc.allocate.prefix import Depths
from realloc.cache.settings import USUAL, Cache
from realloc.errors import ConfigError
from realloc.methods.layers import Chosen, LayerMethod, Turn


def focus(depths: Depths, *, cache: Cache | None = USUAL) -> LayerMethod:
    """Train the layers around the depth that knows most of the labels; freeze those below.

    Source: ours; the probes are those of Alain and Bengio 2016 (1610.01644), the cache is AutoFreeze's (2102.01386).
    Where the layers above ``depths.kept`` know less, ``realloc.shorten(model, depths.kept)`` drops them first.
    Where no depth knows more than the embeddings do, every layer trains.

    Args:
        depths: what `realloc.probe_depths` found for this model and this task.
        cache: of the frozen layers' output; None: compute it anew each time.

    Raises:
        ConfigError: not such a finding; at `attach`, a model with another number of layers than ``depths.kept``.

    >>> from realloc.allocate.prefix import depths_of
    >>> import torch
    >>> found = depths_of([torch.tensor([1.0, 1.2, 0.9]), torch.tensor([0.5, 0.8, 0.4]), torch.tensor([0.4, 0.9, 0.3])])
    >>> focus(found).name, found.frozen, found.kept
    ('focus', 1, 2)
    """
    if not isinstance(depths, Depths):
        raise ConfigError(f"focus takes what realloc.probe_depths(model, batches, targets) returns; got {depths!r}")

    def choose(turn: Turn) -> Chosen:
        if turn.count != depths.kept:
            raise ConfigError(
                f"the model has {turn.count} layers, and the probes of {depths.layers} layers keep {depths.kept}; call "
                f"realloc.shorten(model, {depths.kept}) on the model that was probed, before its optimizer is made"
            )
        return tuple(range(depths.frozen, turn.count))

    return LayerMethod("focus", choose, reference="1610.01644", embeddings="lowest", cache=cache)
