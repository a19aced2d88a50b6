"""The ranks that a run arrived at, for another run to start with."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

import realloc.record.disk as disk
from realloc.errors import ConfigError
from realloc.pool.found import find
from realloc.sites.rank import RankSite


def recipe(model: nn.Module, path: str | Path) -> Path:
    """Write which layer holds how many ranks now; `methods.fixed(path)` trains with them, without measuring.

    Args:
        model: with ranks: prepared or attached, wrapped or not.
        path: a JSON file; replaced where it exists.

    Raises:
        ConfigError: a model without ranks, or one whose layers have several scales (from a peft model).
        RecordError: the disk refused.

    Example:
        >>> import tempfile, pathlib, torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> _ = realloc.prepare(model, methods.lora(rank=2))
        >>> path = realloc.export.recipe(model, pathlib.Path(tempfile.mkdtemp()) / "ranks.json")
        >>> methods.fixed(path).ranks
        (('0', 2),)
    """
    holdings = find(model)
    sites = [] if holdings is None else [s for s in holdings.sites.values() if isinstance(s, RankSite)]
    if not sites:
        raise ConfigError(f"this {type(model).__name__} has no ranks to write down")
    scales = {site.scale for site in sites}
    if len(scales) > 1:
        raise ConfigError(f"the layers have {len(scales)} scales, and a recipe has one; use export.peft(model, folder)")
    ranks = {site.name.removesuffix(".weight"): site.rank for site in sites}
    text = json.dumps({"format": "realloc ranks", "version": 1, "scale": scales.pop(), "ranks": ranks}, indent=1)
    target = Path(path)
    with disk.told("write the recipe to", target, "make room or rights on that disk, then export again"):
        disk.make_folder(target.parent)
        disk.replace(target, text.encode())
    return target
