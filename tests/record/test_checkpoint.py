# ruff: noqa: PTH208
from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import realloc.record.checkpoint as checkpoint
import realloc.record.sealed as sealed
from realloc.errors import RecordError
from realloc.record.checkpoint import listing, load, load_latest, save

FILES = ("tensors.safetensors", "state.json", "manifest.json")


def values(step):
    return {"w": torch.full((5, 7), float(step)), "n": torch.arange(step, step + 4)}


def state(step):
    return {"step": step, "name": "\x1bfc1 é", "list": [1, 2.5, None, {"a": []}]}


def check(found, step):
    assert found.step == step and found.state == state(step)
    assert all(torch.equal(found.tensors[k], v) for k, v in values(step).items()) and len(found.tensors) == 2


def two(folder):
    for step in (10, 20):
        save(folder, step, values(step), state(step))


def test_round_trip_and_pruning(tmp_path):
    assert load_latest(tmp_path / "none") is None and load_latest(tmp_path) is None
    for step in (10, 20, 30, 30):
        path = save(tmp_path, step, values(step), state(step))
        check(load_latest(tmp_path), step)
        check(load(path), step)
    assert [p.name for p in listing(tmp_path)] == ["000003-step-30", "000004-step-30"]
    assert sorted(os.listdir(tmp_path)) == ["000003-step-30", "000004-step-30"]
    save(tmp_path, 5, values(5), state(5))  # a run that fell back: the newest is what was saved last
    check(load_latest(tmp_path), 5)


def test_every_dtype_and_shape(tmp_path):
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn,
    ]  # fmt: skip
    tensors = {}
    for dtype in dtypes:
        for shape in ((), (0,), (3,), (2, 3), (0, 4)):
            tensors[f"{dtype}{shape}"] = torch.randint(0, 2, shape).to(dtype)
    tensors["t"] = torch.randn(3, 4).T
    tensors["part"] = torch.randn(10)[2:7]
    tensors["é\x1b\ud800"[:2]] = torch.ones(1)
    tensors["conj"] = torch.tensor([1 + 2j]).conj()
    path = save(tmp_path, 1, tensors, {})
    for found in (load(path).tensors, load_file(path / FILES[0])):
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            assert found[name].tolist() == tensor.tolist()


def test_no_tensors_at_all(tmp_path):
    save(tmp_path, 0, {}, {})
    assert load_latest(tmp_path).tensors == {}


@pytest.mark.parametrize(
    "bad",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.zeros(2, dtype=torch.complex128),
    ],
)
def test_tensors_that_cannot_be_saved(tmp_path, bad):
    two(tmp_path)
    with pytest.raises(RecordError, match=r"'x\[2J'.*cannot be saved"):
        save(tmp_path, 30, {"x\x1b[2J": bad}, {})
    assert len(os.listdir(tmp_path)) == 2


def test_states_that_cannot_be_saved(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for bad in ({"x": object()}, {"x": float("nan")}, {"x": deep}, {"x": "y" * (sealed.MOST + 1)}):
        with pytest.raises(RecordError, match=r"state of a checkpoint"):
            save(tmp_path, 1, {}, bad)
    with pytest.raises(RecordError, match=r"step >= 0"):
        save(tmp_path, -1, {}, {})


def test_order_on_disk(tmp_path, faulty):
    save(tmp_path, 1, values(1), state(1))
    save(tmp_path, 2, values(2), state(2))
    log = faulty()
    path = save(tmp_path, 3, values(3), state(3))
    steps = [e for e in log.log if e[0] in ("fsync", "rename", "unlink", "rmdir")]
    temporary = f"tmp-{os.getpid()}-{path.name}"
    published = [("fsync", f) for f in FILES] + [("fsync", temporary), ("rename", temporary), ("fsync", tmp_path.name)]
    start = steps.index(("fsync", FILES[0]))
    assert steps[start : start + 6] == published
    assert [e[0] for e in steps[start + 6 :]] == ["rename", "fsync", "unlink", "unlink", "unlink", "rmdir"]


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("code", "dead"), [(errno.ENOSPC, False), (errno.EIO, False), (errno.ENOSPC, True)])
def test_every_operation_may_fail(tmp_path, faulty, code, dead, short):
    """Fail at the n-th operation for all n; with `dead`, everything after it too, which is a crash at that point."""
    for n in range(1, 400):
        folder = tmp_path / str(n)
        two(folder)
        stand_in = faulty(n, code, dead, short)
        try:
            save(folder, 30, values(30), state(30))
            failed = False
        except RecordError as error:
            failed = True
            assert str(error).count("cannot save a checkpoint in") == 1 and os.strerror(code) in str(error)
        finally:
            faulty()
        found = load_latest(folder)
        published = listing(folder)[-1].name == "000003-step-30"
        check(found, 30 if published else 20)
        assert published or failed
        save(folder, 40, values(40), state(40))  # and life goes on
        check(load_latest(folder), 40)
        assert len(os.listdir(folder)) == 2
        shutil.rmtree(folder)
        if not failed and stand_in.count < n:
            assert n > 20
            return
    pytest.fail("the faults never ended")


def test_short_writes_are_completed(tmp_path, faulty):
    faulty(short=True)
    save(tmp_path, 20, values(20), state(20))
    faulty()
    check(load_latest(tmp_path), 20)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_found(tmp_path, name):
    two(tmp_path)
    file = listing(tmp_path)[-1] / name
    whole = file.read_bytes()
    dice = random.Random(0)
    spots = range(len(whole)) if len(whole) < 200 else sorted(dice.sample(range(len(whole)), 200))
    for position in spots:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(RecordError, match=rf"{name}.*delete the folder .*step-20' to fall back to .*step-10'"):
            load_latest(tmp_path)
    for size in sorted({0, 1, len(whole) // 2, len(whole) - 1}):
        file.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=name):
            load_latest(tmp_path)
    file.write_bytes(whole + b" ")
    with pytest.raises(RecordError, match=name):
        load_latest(tmp_path)
    file.unlink()
    with pytest.raises(RecordError, match=r"No such file"):
        load_latest(tmp_path)
    shutil.rmtree(file.parent)  # what the message tells to do
    check(load_latest(tmp_path), 10)


def test_the_only_one_damaged(tmp_path):
    path = save(tmp_path, 1, values(1), state(1))
    (path / "state.json").write_bytes(b"{}")
    with pytest.raises(RecordError, match=r"size in bytes.*fall back to the start of the run"):
        load_latest(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_swapped_files_are_found(tmp_path, name):
    two(tmp_path)
    old, new = listing(tmp_path)
    shutil.copy(old / name, new / name)
    with pytest.raises(RecordError, match=r"damaged|another checkpoint|differs"):
        load_latest(tmp_path)


def test_swapped_folders_are_found(tmp_path):
    two(tmp_path)
    old, new = listing(tmp_path)
    old.rename(tmp_path / "aside")
    new.rename(old)
    (tmp_path / "aside").rename(new)
    for path in (old, new):
        with pytest.raises(RecordError, match=r"another checkpoint"):
            load(path)


def resealed(path, change):
    manifest = sealed.unseal((path / FILES[2]).read_bytes(), "m")
    change(manifest)
    (path / FILES[2]).write_bytes(sealed.seal(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(v=2), "version 2.*update realloc"),
        (lambda m: m.update(format="x"), "not the manifest"),
        (lambda m: m.update(files=[]), "does not list"),
        (lambda m: m["files"].update({"../../etc/passwd": {"size": 1, "sha256": ""}}), "does not list"),
        (lambda m: m["files"].update({"state.json": 3}), "does not list"),
        (lambda m: m["files"]["state.json"].update(size="9"), "size in bytes"),
        (lambda m: m.pop("step"), "another checkpoint"),
    ],
)
def test_hostile_manifests(tmp_path, change, message):
    two(tmp_path)
    resealed(listing(tmp_path)[-1], change)
    with pytest.raises(RecordError, match=message):
        load_latest(tmp_path)


def forged(tmp_path, name, content):
    """Put content under a manifest that vouches for it: the digest is right, the file is not."""
    import hashlib

    path = save(tmp_path, 1, values(1), state(1))
    (path / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    resealed(path, lambda m: m["files"].update({name: entry}))


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[1]", b"null", b"nan", b'{"a":NaN}', b'{"a":1e999999}'[:-1], b"[" * 200_000, b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}", b"\xff\xfe", b'{"a":"\xed\xa0\x80"}',
    ],
)  # fmt: skip
def test_hostile_json(tmp_path, content):
    forged(tmp_path, "state.json", content)
    with pytest.raises(RecordError, match=r"state.json"):
        load_latest(tmp_path)
    path = listing(tmp_path)[-1] / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"manifest.json"):
        load_latest(tmp_path)


def test_huge_files_are_not_read(tmp_path):
    for name in ("state.json", "manifest.json"):
        path = save(tmp_path, 1, values(1), state(1))
        with (path / name).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(RecordError, match=name):
            load_latest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"1234567", (2**63).to_bytes(8, "little"), (99_000_000).to_bytes(8, "little") + b"{}", header(),
        header(w={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(w={"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}),
        header(w={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + b"1234",
        header(w={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}) + b"1234",
        header(w={"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}) + b"1234",
        header(w=3), b"\x02" + bytes(7) + b"[]", (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)  # fmt: skip
def test_hostile_tensors(tmp_path, content):
    forged(tmp_path, "tensors.safetensors", content)
    if content == header():
        assert load_latest(tmp_path).tensors == {}
        return
    with pytest.raises(RecordError, match=r"tensors.safetensors"):
        load_latest(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", FILES)
def test_no_links_no_pipes(tmp_path, name):
    path = save(tmp_path, 1, values(1), state(1))
    (path / name).rename(tmp_path / "moved")
    (path / name).symlink_to(tmp_path / "moved")
    with pytest.raises(RecordError):
        load_latest(tmp_path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(RecordError):
        load_latest(tmp_path)


def test_leftovers_are_ignored_then_cleaned(tmp_path):
    two(tmp_path)
    (tmp_path / "tmp-99-000003-step-30").mkdir()
    (tmp_path / "tmp-99-000003-step-30" / "state.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    check(load_latest(tmp_path), 20)
    assert len(os.listdir(tmp_path)) == 4
    save(tmp_path, 30, values(30), state(30))
    assert sorted(os.listdir(tmp_path)) == ["000002-step-20", "000003-step-30", "notes.txt"]


SAVE = """
import os, sys, torch
from realloc.record.checkpoint import save, load_latest
for _ in sys.stdin:  # one fork for each line: the imports are paid once
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)
        continue
    found = load_latest(sys.argv[1])
    step = found.step if found else 0
    while True:
        step += 1
        save(sys.argv[1], step, {"w": torch.full((40000,), float(step)), "n": torch.tensor(step)}, {"step": step})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_random(tmp_path):
    dice, last, leftovers = random.Random(1), 0, 0
    command = [sys.executable, "-c", SAVE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(40):
            process.stdin.write("\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            time.sleep(0.02 + dice.random() * 0.1)
            os.kill(pid, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"
            leftovers += any(name.startswith("tmp-") for name in os.listdir(tmp_path))
            found = load_latest(tmp_path)
            if found is not None:
                assert found.step >= last and found.state == {"step": found.step}
                assert int(found.tensors["n"]) == found.step and bool((found.tensors["w"] == found.step).all())
                last = found.step
        process.stdin.close()
    assert last >= 20  # on a busy machine not every one of the 40 comes to a save
    assert leftovers  # some kills hit the middle of a save


def test_nothing_pickles():
    room = Path(checkpoint.__file__).parent
    for file in room.glob("*.py"):
        text = file.read_text()
        for word in ("import pickle", "torch.load(", "torch.save(", "np.load(", "np.save(", "eval(", "exec("):
            assert word not in text, (file.name, word)


def test_a_checkpoint_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "000001-step-5").symlink_to(elsewhere)
    with pytest.raises(RecordError, match="is a link"):
        load_latest(folder)
    with pytest.raises(RecordError, match="is a link"):
        save(folder, 6, {"w": torch.ones(2)}, {}, keep=1)
    assert (elsewhere / "precious").read_text() == "mine"
