"""The layers alone: what they read, what they refuse, and torch's own beside them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import realloc
from realloc.errors import ConfigError, RecordError
from realloc.kernels.mixing import below, mixed, mixed_plain
from realloc.kernels.seek import hashed, two_rows
from realloc.nn.budget import Costs, bytes_of, split_of
from realloc.pool.hot_rows import HotRows

LARGE = [2**24, 2**24 + 1, 2**53 + 1, 2**62, 2**63 - 1]


def own_rows(layer: Any, ids: list[int]) -> None:
    """Give rows to ids by hand, with values of their own."""
    pool = HotRows("", layer.store)
    store = layer.store
    whole = torch.tensor(ids)
    buckets = store.hashed(layer.table, whole)[1]
    for number, bucket in zip(ids, buckets.tolist(), strict=True):
        slots = [s for s in range(4 * bucket, 4 * bucket + 4) if int(store.keys[s]) < 0]
        store.keys[slots[0]], store.tables[slots[0]] = number, layer.table
    optimizer = torch.optim.SGD(store.parameters(), lr=0.1)
    pool.move([], [(layer.table, whole)], optimizer)
    with torch.no_grad():
        store.weight[store.split.shared :].normal_()


def tables_of(count: int, store: realloc.nn.Rows) -> nn.ModuleList:
    """Tables of 20 ids each that share a store."""
    return nn.ModuleList(realloc.nn.Embedding(20, store.dim, store) for _ in range(count))


def moved(layers: nn.Module) -> Any:
    optimizer = torch.optim.AdamW(layers.parameters())
    return realloc.attach(layers, optimizer, realloc.methods.rows(), schedule=realloc.every(2, total=4))


class Ear:
    """Hears of what is looked up, as `attach` would."""

    number, listens = 0, True

    def __init__(self, heard: list[Tensor]) -> None:
        self.heard = heard

    def __call__(self, table: int, ids: Tensor, found: Tensor) -> None:
        self.heard.append(ids)

    def note(self, table: int, ids: Tensor, gradient: Tensor) -> None:
        raise AssertionError("nobody has put a hook on")


# hashing ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
def test_mixing_is_that_of_plain_integers(numbers: list[int]) -> None:
    assert mixed(torch.tensor(numbers)).tolist() == [mixed_plain(n) for n in numbers]


def test_ids_spread_evenly_over_rows() -> None:
    rows = below(mixed(torch.arange(100_000)), 100).bincount(minlength=100).double()
    assert float(rows.min()) > 850 and float(rows.max()) < 1150  # 1000 each, sd 31


def test_two_tables_hash_apart() -> None:
    store = realloc.nn.Rows(4, 100)
    one, two = store.enroll(None), store.enroll(None)
    ids = torch.arange(1000)
    assert float((store.rows_of(one, ids) == store.rows_of(two, ids)).double().mean()) < 0.1


def test_large_ids_are_told_apart() -> None:
    layer = realloc.nn.Embedding(None, 4, rows=200)
    own_rows(layer, [*LARGE, 2**24 + 2, 2**53])
    rows = layer.store.rows_of(0, torch.tensor([*LARGE, 2**24 + 2, 2**53]))
    assert rows.unique().numel() == 7 and int(rows.min()) >= layer.store.split.shared
    assert layer.store.rows_of(0, torch.tensor([2**53 + 2])) < layer.store.split.shared


# beside torch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_id_owns", [False, True])
@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("form", ["offsets", "last offset", "matrix", "weights"])
def test_bags_are_torchs(mode: str, form: str, attached: bool, every_id_owns: bool) -> None:
    torch.manual_seed(1)
    ids, dim = 30, 5
    layer = realloc.nn.EmbeddingBag(
        None, dim, realloc.nn.Rows(dim, 400, candidates=8), mode=mode, padding_idx=3,
        include_last_offset=form == "last offset",
    )  # fmt: skip
    if every_id_owns:
        own_rows(layer, list(range(ids)))
    table = layer.weight.detach()[layer.store.rows_of(0, torch.arange(ids))].clone().requires_grad_()
    heard: list[Tensor] = []
    if attached:
        layer.store.hear = Ear(heard)
    weights = torch.rand(12) if form == "weights" and mode == "sum" else None
    bags = torch.randint(0, ids, (3, 4)) if form == "matrix" else torch.randint(0, ids, (12,))
    bags.view(-1)[5] = 3
    offsets = {"matrix": None, "last offset": torch.tensor([0, 5, 5, 12])}.get(form, torch.tensor([0, 4, 4, 11]))
    mine = layer(bags, offsets, weights)
    theirs = nn.functional.embedding_bag(
        bags, table, offsets, mode=mode, padding_idx=3, include_last_offset=form == "last offset",
        per_sample_weights=weights,
    )  # fmt: skip
    torch.testing.assert_close(mine, theirs)
    assert bool(heard) == attached
    pull = torch.randn_like(mine)
    (mine * pull).sum().backward()
    (theirs * pull).sum().backward()
    gradient = torch.zeros_like(layer.weight).index_add(0, layer.store.rows_of(0, torch.arange(ids)), table.grad)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_an_embedding_reads_what_its_plain_one_reads() -> None:
    layer = realloc.nn.Embedding(50, 4, rows="50%", padding_idx=-1)
    ids = torch.randint(0, 50, (3, 7))
    ids[0, 0] = 49
    assert torch.equal(layer(ids), layer.plain()(ids)) and not layer(ids)[0, 0].any()
    assert layer(ids).shape == (3, 7, 4) and layer(ids.int()).shape == (3, 7, 4)
    assert layer(torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    layer(ids).sum().backward()
    layer.eval()
    with torch.no_grad():
        assert not layer(ids).requires_grad
    with pytest.raises(ConfigError, match="open vocabulary"):
        realloc.nn.Embedding(None, 4, rows=20).plain()


def test_quotient_and_remainder_tell_every_id_apart() -> None:
    layer = realloc.nn.QuotientRemainder(500, 3, rows="20%")
    rows = layer(torch.arange(500))
    assert rows.unique(dim=0).shape[0] == 500
    assert layer.held + layer.parked == layer.budget == 100 * 3 * 4 * 3
    expected = layer.weight[torch.tensor([7 // layer.modulus])] * layer.weight[[layer.quotients + 7 % layer.modulus]]
    assert torch.equal(rows[7:8], expected)
    with pytest.raises(ConfigError, match="about 45"):
        realloc.nn.QuotientRemainder(500, 3, rows=40)
    with pytest.raises(ConfigError, match="num_ids is 500"):
        layer(torch.tensor([500]))


def test_double_hashing_reads_the_product_of_two_rows() -> None:
    layer = realloc.nn.DoubleHashing(None, 3, rows=40)
    ids = torch.tensor([[0, 7, *LARGE], [5, 5, *LARGE]])
    first = mixed(ids ^ mixed_plain(0))
    expected = layer.weight[below(first, 40)] * layer.weight[below(mixed(first), 40)]
    assert torch.equal(layer(ids), expected) and torch.equal(
        layer(ids.clamp(max=2**31 - 1).int())[:, :2], expected[:, :2]
    )
    assert layer.held == layer.budget == 40 * 3 * 4 * 3 and layer.parked == 0
    assert not torch.equal(layer(ids), layer(ids, table=1)), "columns that share the rows are told apart"
    told = realloc.nn.DoubleHashing(2000, 3, rows="10%")(torch.arange(2000)).unique(dim=0).shape[0]
    assert told > 1900, "200 rows tell some 20,000 ids apart"
    sparing = realloc.nn.DoubleHashing(500, 4, rows="1kB", moments=0)
    assert (len(sparing.weight), sparing.held, sparing.parked) == (62, 992, 8)
    torch.autograd.gradcheck(lambda w: torch.func.functional_call(layer, {"weight": w}, (ids,)), layer.weight.double())


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), max_size=9), st.integers(0, 2**20), st.integers(1, 2**40))
def test_two_rows_of_the_kernel_are_those_of_plain_torch(found: list[int], table: int, rows: int) -> None:
    ids = torch.tensor(found, dtype=torch.int64)
    assert all(
        torch.equal(a, b) for a, b in zip(two_rows(ids, table, rows), hashed(ids, table, rows, rows), strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_double_hashing_in_a_graph_on_meta_and_under_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, ids = realloc.nn.DoubleHashing(None, 3, rows=40), torch.arange(6000).view(2, 3000)
    whole = layer(ids)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(ids), whole)
    assert torch.equal(torch.func.vmap(layer)(ids), whole)
    assert torch.equal(torch.stack([layer(row) for row in ids.t()], 1), whole), "ids that do not lie in a row"
    assert realloc.nn.DoubleHashing(None, 3, rows=40).to("meta")(ids.to("meta")).shape == (2, 3000, 3)
    assert layer(ids[:, :0]).shape == (2, 0, 3)
    traced = torch.jit.trace(layer, ids[:, :7])
    assert torch.equal(traced(ids[:, 7:]), layer(ids[:, 7:])), "another number of ids than was traced"
    with FakeTensorMode() as mode:
        found = realloc.nn.DoubleHashing(None, 3, rows=40)(mode.from_tensor(ids))
    assert found.shape == (2, 3000, 3)
    graph = make_fx(lambda one: layer(one))(ids)
    assert torch.equal(graph(ids + 1), layer(ids + 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(layer(ids), whole)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_ids": 0}, "num_ids is 0"), ({"dim": 0}, "dim is 0"), ({"moments": -1}, "moments is -1"),
        ({"rows": 0}, "rows is 0"), ({"rows": 501}, "500 rows"), ({"rows": "10b"}, "a row of 3 numbers costs 36"),
        ({"num_ids": None, "rows": "10%"}, "size is unknown"),
    ],
)  # fmt: skip
def test_bad_double_hashing(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        realloc.nn.DoubleHashing(**({"num_ids": 500, "dim": 3, "rows": 40} | wrong))
    with pytest.raises(ConfigError, match="an id is -1"):
        realloc.nn.DoubleHashing(500, 3, 40)(torch.tensor([-1]))
    with pytest.raises(ConfigError, match=r"ids are torch\.float32"):
        realloc.nn.DoubleHashing(500, 3, 40)(torch.ones(1))


# the budget -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(20, 3000), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.floats(1, 9),
    st.integers(0, 2), st.integers(0, 8),
)  # fmt: skip
def test_bytes_are_exact_and_spent(
    rows: int, dim: int, own: float, candidates: float, moments: int, directions: int
) -> None:
    costs = Costs(dim, 4, moments, directions)
    try:
        split = split_of(rows * costs.row, costs, own, candidates)
    except ConfigError as error:
        assert "raise rows" in str(error)
        return
    slots = 4 * split.buckets
    counted = 4 * dim * (1 + moments) * split.rows + slots * (8 + 4 + 4 + 4 + 4 + 4 * directions)
    counted += split.shared * 4 * (1 + directions) + 8 * 8
    assert split.held(split.own) == counted <= split.budget == rows * costs.row
    assert slots >= split.own * candidates and (own > 0) == (split.buckets > 0)
    larger = costs.shared + costs.row + 2 * costs.bucket * (1 + candidates)
    assert split.budget - split.held(split.own) < larger  # what is left buys no row


def test_the_buffers_are_what_is_paid_for() -> None:
    store = realloc.nn.Rows(8, 100, directions=3)
    found = sum(b.numel() * b.itemsize for b in store.buffers()) + 3 * store.weight.numel() * 4
    assert store.split.held(store.split.own) == found <= store.budget
    assert store.held + store.parked == store.budget and store.owners == 0
    before = store.split.rows
    store.half()
    assert store.scores.dtype == torch.float32 and store.split.rows == before
    assert store.split.held(store.split.own) == found - 3 * store.weight.numel() * 2
    assert store.held + store.parked == store.budget


@pytest.mark.parametrize("moments", [0, 2])
def test_double_hashing_counts_the_bytes_of_its_dtype(moments: int) -> None:
    layer = realloc.nn.DoubleHashing(1000, 8, "10.05kB", moments=moments)
    parked = layer.parked
    for dtype, size in ((torch.float16, 2), (torch.float64, 8), (torch.float32, 4)):
        turned = layer.to(dtype)
        assert turned.held == turned.weight.numel() * size * (1 + moments) == turned.budget - parked
        (account,) = realloc.accounts(turned)
        assert (account.held, account.parked) == (turned.held, parked)


def test_quotient_and_remainder_count_the_bytes_of_their_dtype() -> None:
    layer = realloc.nn.QuotientRemainder(500, 4, rows=100, moments=1)
    parked = layer.parked
    for dtype, size in ((torch.float16, 2), (torch.float64, 8), (torch.float32, 4)):
        turned = layer.to(dtype)
        assert turned.held == turned.weight.numel() * size * 2 == turned.budget - parked
        (account,) = realloc.accounts(turned)
        assert (account.currency, account.held, account.parked) == ("bytes", turned.held, parked)


@pytest.mark.parametrize("make", [realloc.nn.Embedding, realloc.nn.EmbeddingBag])
def test_layers_answer_to_the_names_of_torchs_own(make: Any) -> None:
    layer, open_ended = make(1000, 8, rows="10%"), make(None, 8, rows=100)
    assert (layer.num_embeddings, layer.embedding_dim) == (1000, 8)
    assert (open_ended.num_embeddings, open_ended.embedding_dim) == (None, 8)


def test_bytes_in_words_buy_what_as_many_rows_do() -> None:
    for words, rows in (("19.2kB", 100), ("0.0192 MB", 100), ("19.3kB", 100), ("192 b", 1)):
        found, same = bytes_of(words, Costs(16, 4, 2, 0), 1000), bytes_of(rows, Costs(16, 4, 2, 0), None)
        assert same <= found < same + 192
    assert realloc.nn.Embedding(1000, 16, rows="19.2kB").store.split == realloc.nn.Embedding(1000, 16, 100).store.split


def test_a_percentage_is_of_the_full_tables_bytes() -> None:
    assert bytes_of("10%", Costs(16, 4, 2, 0), 1000) == bytes_of(100, Costs(16, 4, 2, 0), 1000) == 100 * 16 * 4 * 3


# refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: realloc.nn.Embedding(10, 4, rows=0), "rows is 0; .*1 or more"),
        (lambda: realloc.nn.Embedding(10, 4, rows=2.5), "rows is 2.5"),
        (lambda: realloc.nn.Embedding(10, 4, rows="0%"), "rows is '0%'"),
        (lambda: realloc.nn.Embedding(10, 4, rows="200"), "rows is '200'; as a string .* such as '200kB'"),
        (lambda: realloc.nn.Embedding(10, 4, rows="0kB"), "rows is '0kB'"),
        (lambda: realloc.nn.Embedding(10, 4, rows="1kB"), "the full table has 10 rows: nothing is to be shared"),
        (lambda: realloc.nn.Embedding(10, 4, rows="ten%"), "such as '10%'"),
        (lambda: realloc.nn.Embedding(None, 4, rows="10%"), "pass num_ids"),
        (lambda: realloc.nn.Embedding(10, 4, rows=11), "full table has 10 rows"),
        (lambda: realloc.nn.Embedding(10, 4, rows=1), "one shared row .* costs"),
        (lambda: realloc.nn.Embedding(10, 4, rows=3), "less than one row to own|one shared row"),
        (lambda: realloc.nn.Embedding(1000, 4, rows=100, own=1.0), "own is 1.0"),
        (lambda: realloc.nn.Embedding(1000, 4, rows=100, directions=5), "4 are exact already"),
        (lambda: realloc.nn.Embedding(1000, 4, rows=100, padding_idx=1000), "padding_idx is 1000"),
        (lambda: realloc.nn.Embedding(1000, 4, realloc.nn.Rows(5, 100)), "use one dim"),
        (lambda: realloc.nn.Embedding(1000, 4, realloc.nn.Rows(4, 100), own=0.1), "the store's"),
        (lambda: realloc.nn.EmbeddingBag(1000, 4, rows=100, mode="min"), "mode is 'min'"),
        (lambda: tables_of(4, realloc.nn.Rows(4, 5, own=0.0)), "4 tables are to share 3 hashed rows.*raise rows"),
        (lambda: moved(tables_of(2, realloc.nn.Rows(4, 100))), "have 40 ids together: nothing is to be shared"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(build: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build()


def test_ids_that_are_none_are_refused() -> None:
    layer = realloc.nn.Embedding(None, 4, rows=100)
    bag = realloc.nn.EmbeddingBag(None, 4, rows=100)
    with pytest.raises(ConfigError, match=r"an id is -1; .*padding_idx"):
        layer(torch.tensor([3, -1]))
    with pytest.raises(ConfigError, match="float32"):
        layer(torch.tensor([3.0]))
    with pytest.raises(ConfigError, match="an id is -7"):
        bag(torch.tensor([[-7]]))
    with pytest.raises(ConfigError, match="without offsets"):
        bag(torch.tensor([7]))
    with pytest.raises(ConfigError, match="offsets must begin at 0"):
        bag(torch.tensor([7, 8]), torch.tensor([1]))
    with pytest.raises(ConfigError, match="mode='sum'"):
        bag(torch.tensor([[7]]), None, torch.ones(1, 1))


# copies and files -------------------------------------------------------------------------------------------------


def test_a_copy_reads_alike_and_hears_nothing() -> None:
    layer = realloc.nn.Embedding(None, 4, rows=100)
    own_rows(layer, [5, 9])
    layer.store.hear = Ear([])
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer.__class__(None, 4, rows=100)))):
        assert other.store.hear is None
    assert torch.equal(copy.deepcopy(layer)(torch.arange(30)), layer(torch.arange(30)))


def test_a_state_is_checked_before_it_is_copied() -> None:
    layer, other = (realloc.nn.Embedding(None, 4, rows=100) for _ in range(2))
    own_rows(layer, [5, 9])
    state = layer.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other(torch.arange(30)), layer(torch.arange(30)))
    slot = int((layer.store.owned >= 0).nonzero()[0])
    other_slot = int((layer.store.owned >= 0).nonzero()[1])
    elsewhere = layer.store.hashed(0, torch.arange(99))[1] != slot // 4
    damages = [
        ("keys", slot, int(elsewhere.nonzero()[0])),
        ("owned", slot, 0),
        ("owned", slot, 10**6),
        ("tables", slot, 4),
    ]
    damages += [("scores", slot, -1.0), ("shared_scores", 0, float("nan")), ("book", 3, -5)]
    damages += [("owned", slot, int(layer.store.owned[other_slot]))]
    for key, place, value in damages:
        damaged = {name: tensor.clone() for name, tensor in state.items()}
        damaged["store." + key][place] = value
        with pytest.raises(RecordError, match="damaged"):
            other.load_state_dict(damaged)
    with pytest.raises(RecordError, match="same dim, rows"):
        realloc.nn.Embedding(None, 4, rows=90).load_state_dict(state)
    with pytest.raises(RecordError, match=r"store\.inherited is not in the state"):
        other.load_state_dict({"store.weight": state["store.weight"]} | {
            key: value for key, value in state.items() if "inherited" not in key
        }, strict=False)  # fmt: skip
    with pytest.raises(ConfigError, match="own rows"):
        layer.store.reset_parameters()


def test_tables_of_unknown_size_may_share_any_number_of_rows() -> None:
    store = realloc.nn.Rows(4, 100)
    handle = moved(nn.ModuleList(realloc.nn.Embedding(ids, 4, store) for ids in (20, None)))
    assert handle.budget == store.budget and tables_of(3, realloc.nn.Rows(4, 5, own=0.0))
