"""A cache gives back what was written, rounded, where it lay, and never takes more than its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.cache.keys import examples_of
from realloc.cache.rows import DTYPES, Rows
from realloc.errors import ConfigError

TEXTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=12)


def batch(texts: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts))
    pad = [[0] * (width - len(text)) for text in texts]
    ids = [p + t if left else t + p for t, p in zip(texts, pad, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(t) if left else [1] * len(t) + [0] * len(p) for t, p in zip(texts, pad, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(sorted(DTYPES)), st.booleans(), st.integers(1, 60), st.integers(0, 9))
def test_what_is_read_is_what_was_written_rounded(tmp_path_factory, texts, dtype, left, room, seed):
    ids, mask = batch(texts, left)
    examples = examples_of(ids, mask, positions=mask.cumsum(1))
    hidden = torch.randn(*ids.shape, 3, generator=torch.Generator().manual_seed(seed)) * mask.unsqueeze(-1)
    # two rows of one text are one example
    known = {}
    for row, example in enumerate(examples):
        known.setdefault(example.key, hidden[row, example.first : example.last])
    file = tmp_path_factory.mktemp("c") / "rows" if seed % 2 else None
    rows = Rows(3, room * 3 * DTYPES[dtype].itemsize, dtype, file)
    for example in examples:
        rows.write(example, known[example.key])
    assert rows.tokens <= rows.room == room and rows.bytes <= room * 3 * DTYPES[dtype].itemsize
    here = [example for example in examples if rows.has(example)]
    assert len(here) or len(texts[0]) > room
    if here:
        found = rows.read(here, ids.shape[1])
        for row, example in enumerate(here):
            assert torch.equal(found[row, example.first : example.last], rows.rounded(known[example.key]))
            assert not found[row, : example.first].any() and not found[row, example.last :].any()
    gone = [example for example in examples if not rows.has(example)]
    assert bool(gone) == bool(rows.refused)
    for example in gone:
        with pytest.raises(KeyError):
            rows.read([example], ids.shape[1])


def test_a_full_cache_keeps_what_it_has():
    rows = Rows(1, 3 * 2)
    first, second, third = (examples_of(torch.tensor([text]))[0] for text in ([1, 2], [3, 4], [5]))
    assert rows.write(first, torch.ones(2, 1)) and not rows.write(second, torch.ones(2, 1))
    assert rows.write(third, torch.ones(1, 1))  # a shorter one still fits
    assert (len(rows), rows.tokens, rows.refused) == (2, 3, 1)
    assert not rows.write(first, torch.zeros(2, 1)) and rows.read([first], 2).sum() == 2
    rows.clear()
    assert (len(rows), rows.tokens, rows.refused) == (0, 0, 0) and rows.write(second, torch.ones(2, 1))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_is_taken_as_it_is_written():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    rows = Rows(64, 1 << 30)
    assert resident() - before < 1 << 26
    rows.write(examples_of(torch.ones(1, 10).long())[0], torch.ones(10, 64))
    assert rows.bytes == 10 * 64 * 2


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"width": 4, "limit": 100, "dtype": "int8"}, "'int8'; use one of"),
        ({"width": 400, "limit": 100}, "raise the limit"),
        ({"width": 0, "limit": 100}, "holds no token"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        Rows(**settings)
