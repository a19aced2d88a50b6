from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toy import attached, intact, masks, net, same, train, weights

from realloc import methods


@pytest.fixture(autouse=True)
def _reset() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("method", [methods.rigl, methods.snfs])
def test_one_graph_same_numbers_no_recompilation_over_20_moves(method: Any, backend: str) -> None:
    model, optimizer, handle = attached(method(density=0.2), model=net().double(), every=2)
    straight, other, second = attached(method(density=0.2), model=net().double(), every=2)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    try:
        train(compiled, optimizer, 0, 3, dtype=torch.float64)
    except torch._dynamo.exc.BackendCompilerFailed as error:  # pragma: no cover
        if backend != "inductor" or "ompiler" not in str(error):
            raise
        pytest.skip(f"inductor needs a C++ compiler: {error}")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        train(compiled, optimizer, 3, 41, dtype=torch.float64)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs == 1
    assert handle.moves == 20
    intact(handle)
    train(straight, other, 0, 41, dtype=torch.float64)
    assert same(masks(handle), masks(second))
    mine, wanted = weights(model), weights(straight)
    assert all(torch.allclose(mine[k], wanted[k], atol=1e-9) for k in mine)
    if method is methods.snfs:
        started = {line.name: line.held for line in handle.start.sites}
        assert any(site.held != started[name] for name, site in handle.sites.items())  # units crossed layers


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_given_to_attach_and_export() -> None:
    plain = net()
    method = methods.rigl(density=0.2)
    import realloc

    realloc.prepare(plain, method)
    compiled = torch.compile(plain, backend="aot_eager")
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    handle = realloc.attach(compiled, optimizer, method, schedule=realloc.every(2, until=1.0, total=60))
    train(compiled, optimizer, 0, 5)
    assert handle.moves == 2
    dense = realloc.export.dense(compiled)
    assert list(dense.state_dict()) == list(net().state_dict())
    twin = copy.deepcopy(plain)
    assert same(weights(twin), weights(plain))
