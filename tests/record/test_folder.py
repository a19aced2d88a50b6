# ruff: noqa: PTH208
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from realloc.errors import ConfigError, RecordError
from realloc.record.folder import RunFolder, read_config, read_result
from realloc.record.names import inside

HOLD = """
import sys, time
from realloc.record.folder import RunFolder
run = RunFolder.open(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""
FORK = """
import os, sys, time
from realloc.record.folder import RunFolder
run = RunFolder.open(sys.argv[1])
if os.fork() == 0:
    time.sleep(2.5)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""
RACE = """
import sys, time
from realloc.errors import RecordError
from realloc.record.folder import RunFolder
while time.time() < float(sys.argv[2]):
    pass
try:
    run = RunFolder.create(sys.argv[1], {"a": 1})
    print("won", flush=True)
    time.sleep(1.5)
except RecordError as error:
    print(error, flush=True)
"""


def child(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_create_open_finish(tmp_path):
    path = tmp_path / "runs" / "a"
    with RunFolder.create(path, {"method": "rigl", "block": (1, 1)}) as run:
        assert json.loads((path / "config.json").read_text())["content"]["method"] == "rigl"
        assert run.config == {"method": "rigl", "block": [1, 1]} and run.result is None
        assert run.events.parent == run.checkpoints.parent == path
    with RunFolder.open(path) as run:
        run.finish({"metric": 0.5})
        assert run.result == {"metric": 0.5} == read_result(path)
    run.close()
    assert read_config(path) == run.config


def test_open_twice_in_one_process(tmp_path):
    with RunFolder.create(tmp_path / "a", {}):
        with pytest.raises(RecordError, match=f"already open in this process .pid {os.getpid()}, for 0 seconds"):
            RunFolder.open(tmp_path / "a")
        with pytest.raises(RecordError, match=r"holds a run already"):
            RunFolder.create(tmp_path / "a", {})
    RunFolder.open(tmp_path / "a").close()


def test_closed_in_another_thread(tmp_path):
    run = RunFolder.create(tmp_path / "a", {})
    thread = threading.Thread(target=run.close)
    thread.start()
    thread.join()
    RunFolder.open(tmp_path / "a").close()


def test_second_process_and_kill(tmp_path):
    RunFolder.create(tmp_path / "a", {}).close()
    process = child(HOLD, tmp_path / "a")
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match=rf"in use by process {process.pid} on \S+, for \d+ seconds; wait for it"):
            RunFolder.open(tmp_path / "a")
        assert read_config(tmp_path / "a") == {}  # looking is allowed
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "a" / "owner.json").exists()  # stale, and no obstacle
        RunFolder.open(tmp_path / "a").close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_workers_of_a_killed_run_are_waited_for(tmp_path):
    RunFolder.create(tmp_path / "a", {}).close()
    process = child(FORK, tmp_path / "a")
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    RunFolder.open(tmp_path / "a").close()
    process.stdout.close()


def test_one_of_many_wins(tmp_path):
    start = time.time() + 4
    processes = [child(RACE, tmp_path / "a", start) for _ in range(4)]
    said = [process.communicate()[0].strip() for process in processes]
    assert said.count("won") == 1
    assert all("in use" in s or "holds a run" in s or "open in" in s for s in said if s != "won"), said


def test_foreign_folders(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(RecordError, match=r"not empty .*thesis\.tex.*choose another"):
        RunFolder.create(tmp_path / "foreign", {})
    with pytest.raises(RecordError, match=r"not a run folder"):
        RunFolder.open(tmp_path / "foreign")
    assert os.listdir(tmp_path / "foreign") == ["thesis.tex"]
    (tmp_path / "foreign" / "config.json").write_text("{}")
    with pytest.raises(RecordError, match=r"not empty"):
        RunFolder.create(tmp_path / "foreign", {})
    with pytest.raises(RecordError, match=r"no sha256"):
        RunFolder.open(tmp_path / "foreign")
    with pytest.raises(RecordError, match=r"does not exist"):
        RunFolder.open(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(RecordError):
            RunFolder.create(path, {})
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", {}).close()


def test_a_create_that_was_cut_short_can_be_repeated(tmp_path, faulty):
    for n in range(1, 60):
        path = tmp_path / f"run{n}"
        stand_in = faulty(n, dead=True)
        try:
            run = RunFolder.create(path, {"n": n})
        except RecordError as error:
            assert "cannot make the run folder" in str(error) and "No space" in str(error)
            faulty()
            if (path / "config.json").exists():
                assert read_config(path) == {"n": n}
            else:
                RunFolder.create(path, {"n": n}).close()
            continue
        faulty()
        run.close()
        assert stand_in.count < n
        return
    pytest.fail("the faults never ended")


def test_finish_under_faults(tmp_path, faulty):
    for n in range(1, 30):
        run = RunFolder.create(tmp_path / f"run{n}", {})
        run.finish({"first": True})
        faulty(n)
        try:
            run.finish({"first": False})
        except RecordError as error:
            assert "write the result" in str(error)
            faulty()
            assert run.result in ({"first": True}, {"first": False})
            continue
        finally:
            faulty()
            run.close()
        return
    pytest.fail("the faults never ended")


def test_every_changed_byte_of_config_and_result(tmp_path):
    with RunFolder.create(tmp_path / "a", {"lr": 0.1, "name": "é"}) as run:
        run.finish({"metric": 1})
    for name, look in (("config.json", read_config), ("result.json", read_result)):
        file = tmp_path / "a" / name
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            with pytest.raises(RecordError, match=name):
                look(tmp_path / "a")
        file.write_bytes(whole)


def test_configs_that_json_cannot_hold(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for bad in ({"x": object()}, {"x": float("nan")}, {"x": {(1, 2): 3}}, {"x": deep}):
        with pytest.raises(ConfigError, match=r"plain JSON"):
            RunFolder.create(tmp_path / "a", bad)
    assert not (tmp_path / "a").exists()
    with RunFolder.create(tmp_path / "a", {}) as run, pytest.raises(RecordError, match=r"result of a run"):
        run.finish({"x": float("inf")})


BAD_NAMES = [
    "../../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", " a", "a.", ".hidden", "a\x00b", "a\x1bb", "x" * 300, "CON",
    "nul.txt", "c:x", "a\u202eb", "é" * 150,
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot name a file"):
        inside(tmp_path, name)


def test_links_are_not_followed(tmp_path):
    (tmp_path / "link").symlink_to("/tmp")
    with pytest.raises(ConfigError, match=r"link"):
        inside(tmp_path, "link")
    assert inside(tmp_path, "rigl-0.1") == tmp_path / "rigl-0.1"


@pytest.mark.parametrize("path", ["", "a\x00b", "a\x1b[2Jb", "y/" + "x" * 300])
def test_paths_that_are_none(tmp_path, path):
    with pytest.raises(ConfigError, match=r"cannot be a run folder"):
        RunFolder.create(path, {})
