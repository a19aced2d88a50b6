"""A model that ends earlier: the function is that of its lower layers, and what is saved is a plain smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import LAYERS, ZOO, bert

import realloc
from realloc import methods
from realloc.allocate.prefix import depths_of
from realloc.errors import ConfigError


@pytest.mark.parametrize("name", ZOO)
def test_the_rest_is_what_the_lower_layers_were(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = ZOO[name]().eval()
    base = model.base_model
    ids = torch.randint(1, 60, (3, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    dropped = realloc.shorten(model, LAYERS - 1)
    assert len(dropped) == 1 and dropped[0].endswith(f".{LAYERS - 1}")
    with torch.no_grad():
        found = base(input_ids=ids, attention_mask=mask).last_hidden_state
    last = {"llama": lambda x: base.norm(x), "gpt2": lambda x: base.ln_f(x)}.get(name, lambda x: x)
    assert torch.allclose(found, last(before[LAYERS - 1]), atol=1e-6)
    base.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == LAYERS - 1
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids, attention_mask=mask).last_hidden_state, found)
    assert realloc.shorten(model, LAYERS - 1) == ()


def test_what_cannot_be_shortened_is_refused() -> None:
    for keep in (0, LAYERS + 1, True, 1.5):
        with pytest.raises(ConfigError, match="keep 1 to 4"):
            realloc.shorten(bert(), keep)  # type: ignore[arg-type]
    stack = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="only such models"):
        realloc.shorten(stack, 1)


def test_focus_wants_the_model_that_the_probes_say() -> None:
    model = bert()
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(50, generator=draw) / 100
    found = depths_of([noise + mean for mean in (1.0, 0.9, 0.5, 0.7, 0.9)])
    assert (found.frozen, found.kept) == (1, 3)
    with pytest.raises(ConfigError, match=r"call realloc.shorten\(model, 3\)"):
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.focus(found))
    realloc.shorten(model, found.kept)
    handle = realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.focus(found))
    assert list(handle.layers.values()) == [False, True, True]
    with pytest.raises(ConfigError, match="focus takes what"):
        methods.focus(3)  # type: ignore[arg-type]
