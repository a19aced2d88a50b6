from __future__ import annotations

import collections
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import RecordError
from realloc.record import sealed
from realloc.record.tree import decode, encode


def through(value):
    tensors: dict = {}
    node = json.loads(sealed.dump(encode(value, "x", tensors)))
    return decode(node, tensors)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary()
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.booleans()) | st.just("$")
TREES = st.recursive(
    PLAIN,
    lambda s: st.lists(s, max_size=3) | st.dictionaries(KEYS, s, max_size=3) | st.lists(s, max_size=3).map(tuple),
    max_leaves=12,
)


def same_types(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same_types(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            same_types(x, y)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_exact(value):
    found = through(value)
    assert found == value
    same_types(value, found)


def test_the_other_types():
    assert math.isnan(through(float("nan"))) and through(-math.inf) == -math.inf
    assert math.copysign(1, through(-0.0)) == -1
    assert through(collections.Counter({3: 2})) == collections.Counter({3: 2})
    assert type(through(collections.Counter([1]))) is collections.Counter
    assert type(through(collections.OrderedDict(a=1))) is dict
    assert through(torch.bfloat16) is torch.bfloat16 and through(torch.device("cpu")) == torch.device("cpu")
    assert type(through(torch.Size([1, 2]))) is torch.Size
    array = np.arange(6, dtype=np.uint32).reshape(2, 3).T
    found = through(array)
    assert found.dtype == np.uint32 and (found == array).all() and found.flags.writeable
    for scalar in (np.float32(0.1), np.float64(0.1), np.int8(3), np.bool_(True), np.array(2.5)):
        back = through(scalar)
        assert type(back) is type(scalar) and back == scalar and back.dtype == scalar.dtype


def test_tensors_are_copies_with_their_strides():
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    values = {"a/b": torch.ones(2), "a": {"b": torch.zeros(3)}, "image": image, "t": torch.randn(3, 4).T}
    values |= {"part": torch.randn(4, 4)[:, 1:3], "wide": torch.ones(1).expand(5), "none": torch.empty(0, 3)}
    tensors: dict = {}
    node = encode(values, "x", tensors)
    found = decode(node, tensors)
    assert torch.equal(found["a/b"], values["a/b"]) and torch.equal(found["a"]["b"], values["a"]["b"])
    for name in ("image", "t", "part", "wide", "none"):
        assert torch.equal(found[name], values[name])
        assert found[name].data_ptr() != values[name].data_ptr() or not found[name].numel()
    assert found["image"].stride() == image.stride() and found["t"].stride() == (1, 4)
    assert found["part"].is_contiguous() and found["wide"].is_contiguous()


def test_unknown_types_are_named():
    loop: list = []
    loop.append(loop)
    named = collections.namedtuple("named", "a")
    for bad in (
        {1, 2},
        object(),
        named(1),
        collections.deque(),
        1j,
        lambda: 0,
        np.array(["a"]),
        type("D", (dict,), {})(),
    ):
        with pytest.raises(RecordError, match=r"'opt/fc1/0'"):
            encode({"fc1\x1b": [bad]}, "opt", {})
    with pytest.raises(RecordError, match=r"levels deep, or holds itself"):
        encode(loop, "x", {})


HOSTILE = [
    {"$": "pickle", "data": ""}, {"$": "tensor"}, {"$": "tensor", "name": "none"}, {"$": "tensor", "name": []},
    {"$": "tensor", "name": "w", "stride": [2**62, 1]}, {"$": "tensor", "name": "w", "stride": [0, 1]},
    {"$": "tensor", "name": "w", "stride": [-1, 1]}, {"$": "tensor", "name": "w", "stride": "ab"},
    {"$": "tensor", "name": "w", "stride": [1.0, 2]}, {"$": "tensor", "name": "w", "stride": [3]},
    {"$": "dtype", "name": "load"}, {"$": "dtype", "name": "__class__"}, {"$": "dtype", "name": 3},
    {"$": "device", "name": "warp:9"}, {"$": "bytes", "hex": "xy"}, {"$": "float", "value": "1"},
    {"$": "tuple", "items": 3}, {"$": "dict", "items": [[[], 1]]}, {"$": "dict", "items": [1]}, {"$": []},
    {"$": "counter", "items": [[1]]}, {"$": "size", "items": ["a"]}, {"$": "array", "of": 3}, {"$": None, "items": []},
]  # fmt: skip


@pytest.mark.parametrize("node", HOSTILE)
def test_hostile_nodes(node):
    with pytest.raises(RecordError):
        decode({"deep": [node]}, {"w": torch.ones(2, 3)})


def test_hostile_depth():
    node: object = 1
    for _ in range(500):
        node = {"$": "tuple", "items": [node]}
    with pytest.raises(RecordError, match=r"levels deep"):
        decode(node, {})


def test_seal():
    content = {"b": [1, {"c": None}], "a": "\x1b é", "n": 0.1}
    assert sealed.unseal(sealed.seal(content), "x") == content
    for data in (b"[]", b"{}", b'{"sha256":3}', b'{"sha256":"' + b"0" * 64 + b'"}', b"x" * (sealed.MOST + 1)):
        with pytest.raises(RecordError, match=r"x "):
            sealed.unseal(data, "x")
