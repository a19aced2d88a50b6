from __future__ import annotations

import copy
import errno
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import ConfigError, RecordError
from realloc.record.events import EventLog, number, read

HOSTILE = ["\x1b[2J", "</script>", "a\nb", "\u2028", "\u202e", "[link=x]", "\ud800", "", "é", '"', "\\", "\x00"]


def filled(path, count=6):
    log = EventLog(path)
    for step in range(count):
        log.decision({"v": 1, "kind": "move", "step": step, "sites": {"fc1": {"before": 3, "after": 4}}})
    return log


def test_round_trip(tmp_path):
    log = filled(tmp_path / "events.jsonl", 2)
    log.metric(2, {"loss": torch.tensor(0.25), "n": np.int64(3), "seen": True, "rates": (0.5, None)})
    events = read(log.path)
    assert events.cut is None
    assert events.lines[0] == {"v": 1, "kind": "move", "step": 0, "sites": {"fc1": {"before": 3, "after": 4}}}
    assert events.lines[2]["values"] == {"loss": 0.25, "n": 3, "seen": True, "rates": [0.5, None]}
    assert log.offset == log.path.stat().st_size


def test_numbers_that_are_none(tmp_path):
    log = EventLog(tmp_path / "e")
    values = [float("nan"), float("inf"), -np.inf, np.float32("nan"), torch.tensor(float("inf"))]
    log.metric(1, {"values": values})
    text = log.path.read_text()
    json.loads(text, parse_constant=lambda c: pytest.fail(f"a bare {c}"))
    found = read(log.path).lines[0]["values"]["values"]
    assert found == ["NaN", "Infinity", "-Infinity", "NaN", "Infinity"]
    assert [number(v) for v in found[1:3]] == [np.inf, -np.inf] and np.isnan(number(found[0]))
    with pytest.raises(RecordError, match=r"not a logged number"):
        number("12")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_kept_and_harmless(tmp_path, name):
    log = EventLog(tmp_path / "e")
    log.decision({"kind": "move", "step": 1, "sites": {name: {"before": 1}}, "reason": name})
    raw = log.path.read_bytes()
    assert raw.count(b"\n") == 1 and all(32 <= byte < 127 for byte in raw[:-1])
    assert read(log.path).lines[0]["sites"] == {name: {"before": 1}}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=4), s, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_any_json_survives(tmp_path_factory, values):
    log = EventLog(tmp_path_factory.mktemp("log") / "e")
    log.metric(1, values)
    assert read(log.path).lines[0]["values"] == values


def test_what_no_event_can_hold(tmp_path):
    log = EventLog(tmp_path / "e")
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    loop: dict = {}
    loop["self"] = loop
    for bad in ({"x": object()}, {"x": torch.ones(2)}, {"x": {(1, 2): 3}}, {"x": deep}, loop, {"x": {1, 2}}, {"x": 1j}):
        with pytest.raises(RecordError, match=r"event"):
            log.metric(1, bad)
    with pytest.raises(RecordError, match='"kind"'):
        log.decision({"step": 1})
    with pytest.raises(RecordError, match='"crc"'):
        log.decision({"kind": "move", "step": 1, "crc": 5})
    assert log.offset == 0 and log.path.stat().st_size == 0


def test_cut_at_every_byte_of_the_last_three_lines(tmp_path):
    whole = filled(tmp_path / "whole").path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    path = tmp_path / "e"
    for size in range(ends[2], len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = sum(end <= size for end in ends)
        start = ends[lines - 1]
        events = read(path)
        assert [e["step"] for e in events.lines] == list(range(lines))
        assert events.cut == (None if size == start else start)
        log = EventLog(path)  # a writer drops the torn line, and only that
        assert log.offset == start
        log.truncate(ends[2])
        log.decision({"kind": "move", "step": 3})
        after = read(path)
        assert [e["step"] for e in after.lines] == [0, 1, 2, 3] and after.cut is None


def test_one_torn_line_only(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(b'{"v":1,"ki')
    assert read(path).cut == 0 and read(path).lines == ()
    assert EventLog(path).offset == 0
    path.write_bytes(b"x" * 200_000)
    assert EventLog(path).offset == 0


def test_every_flipped_bit_is_found(tmp_path):
    path = filled(tmp_path / "e", 4).path
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for position in range(len(whole) - 1):
        bit = position % 8
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        line = whole[:position].count(b"\n") + 1
        if damaged[position] == 10 and position >= last:
            line = 4
        with pytest.raises(RecordError, match=rf"line {line} of .*e'.*(checksum|version).*"):
            read(path)


def test_garbage_line_names_line_file_and_remedy(tmp_path):
    path = filled(tmp_path / "events.jsonl", 3).path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[1])
    with pytest.raises(RecordError, match=r"line 2 of .*events\.jsonl.*restore the file"):
        read(path)
    path.write_bytes(lines[0] + b"\x00" * 50 + b"\n")
    with pytest.raises(RecordError, match=r"line 2"):
        read(path)


def test_newer_version_is_refused(tmp_path):
    import zlib

    body = b'{"v":2,"kind":"move"}'
    (tmp_path / "e").write_bytes(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    with pytest.raises(RecordError, match=r"version 2.*update realloc"):
        read(tmp_path / "e")
    deep = b"[" * 100_000
    (tmp_path / "e").write_bytes(deep[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(deep[:-1] + b"}"))
    with pytest.raises(RecordError):
        read(tmp_path / "e")


def test_truncate_goes_back_to_the_checkpoint(tmp_path):
    log = filled(tmp_path / "e", 3)
    offset = log.sync()
    kept = log.path.read_bytes()
    log.decision({"kind": "move", "step": 3})
    again = EventLog(log.path)
    again.truncate(offset)
    assert log.path.read_bytes() == kept
    again.decision({"kind": "move", "step": 3})
    assert [e["step"] for e in read(log.path).lines] == [0, 1, 2, 3]
    with pytest.raises(RecordError, match=r"lines are lost"):
        again.truncate(10**9)
    with pytest.raises(RecordError, match=r"no line that ends"):
        again.truncate(offset - 3)
    again.truncate(0)
    assert read(log.path).lines == ()
    missing = EventLog(tmp_path / "none")
    missing.truncate(0)
    assert missing.sync() == 0
    with pytest.raises(RecordError, match=r"lines are lost"):
        missing.truncate(4)


def test_two_writers_are_noticed(tmp_path):
    one = filled(tmp_path / "e", 1)
    two = EventLog(one.path)
    two.decision({"kind": "move", "step": 1})
    with pytest.raises(RecordError, match=r"another process wrote"):
        one.decision({"kind": "move", "step": 1})
    assert len(read(one.path).lines) == 2


def test_survives_a_deep_copy(tmp_path):
    log = filled(tmp_path / "e", 1)
    assert copy.deepcopy(log).offset == log.offset


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_no_half_line(tmp_path, faulty, code):
    for n in range(1, 20):
        log = filled(tmp_path / f"e{n}", 2)
        before = log.path.read_bytes()
        stand_in = faulty(n, code)
        try:
            log.decision({"kind": "move", "step": 2})
        except RecordError as error:
            assert "append to" in str(error) and "resume" in str(error)
            after = log.path.read_bytes()
            # Only a failing close leaves the line, and then whole.
            assert after == before or (stand_in.log[-1][0] == "close" and len(read(log.path).lines) == 3)
            continue
        finally:
            faulty()
        assert n > stand_in.count
        return
    pytest.fail("the faults never ended")


def test_a_crash_in_an_append_loses_one_line_at_most(tmp_path, faulty):
    for n in range(1, 8):
        log = filled(tmp_path / f"e{n}", 2)
        faulty(n, dead=True)
        with_error = False
        try:
            log.decision({"kind": "move", "step": 2})
        except RecordError:
            with_error = True
        faulty()
        assert len(read(log.path).lines) >= 2
        again = EventLog(log.path)
        assert again.offset == log.path.stat().st_size and read(log.path).cut is None
        again.decision({"kind": "move", "step": 2})
        if not with_error:
            return


def test_missing_file(tmp_path):
    with pytest.raises(RecordError, match=r"cannot read"):
        read(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError):
        EventLog(tmp_path / "folder")


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_a_path_that_names_no_file_is_refused(path):
    with pytest.raises(ConfigError, match="names no file"):
        EventLog(path)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/proc/nothing/a"])
def test_a_path_that_cannot_hold_a_log_is_refused_at_once(path):
    with pytest.raises(RecordError):
        EventLog(path)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    EventLog("~/a.jsonl").metric(1, {"loss": 0.5})
    assert (tmp_path / "a.jsonl").exists()
