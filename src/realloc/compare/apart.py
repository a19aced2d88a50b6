"""Starting runs in processes of their own, and hearing from them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, final

from realloc.errors import ConfigError, ReallocError, RecordError, StateError, warn
from realloc.record.folder import read_config, read_result
from realloc.train.config import RunConfig
from realloc.train.progress import Progress, Tell
from realloc.train.result import RunResult, from_json
from realloc.train.stop import Interrupted, Stop
from realloc.train.watch import RunError

CHILD: Final = "realloc.compare.child"
_ERRORS: Mapping[str, type[ReallocError]] = {e.__name__: e for e in (ConfigError, RecordError, StateError)}


def run_apart(config: RunConfig, folder: Path, tell: Tell) -> RunResult:
    """Run a config in its own process and folder; a finished run of the same config is read instead.

    Raises:
        ConfigError: bad input, or a folder with a run of another config.
        RunError: the run failed.
        Interrupted: Ctrl-C; the run has written its checkpoint.
    """
    done = finished(config, folder)
    if done is not None:
        return done
    job = {"config": config.model_dump(mode="json"), "folder": str(folder)}
    return from_json(heard(CHILD, job, folder.name, tell))


def heard(module: str, job: Mapping[str, Any], name: str, tell: Tell) -> dict[str, Any]:
    """Have a module do a job in a process of its own, by `realloc.compare.child.serve`, and return its result's JSON.

    Raises:
        ConfigError: bad input; or StateError, RecordError, as the child says.
        RunError: the run failed, or the process died.
        Interrupted: Ctrl-C, which was passed on.
    """
    # -P: a file in the working folder must not stand in for a module. Its own session: Ctrl-C reaches it through us,
    # once, and a second one ends it. When we die, its next word to us fails and it ends too.
    command = [sys.executable, "-P", "-m", module]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        child = _Child(process, tell)
        try:
            with Stop(child.interrupt) as stop:
                process.stdin.write(json.dumps(job))
                process.stdin.close()
                found = child.listen(process.stdout)
        except BaseException:
            process.kill()
            raise
    if stop.asked or "interrupted" in found:
        raise Interrupted(f"in {name}", None)
    if "error" in found:
        kind, message = found["error"]["kind"], found["error"]["message"]
        raise _ERRORS.get(kind, RunError)(message)
    if "result" not in found:
        raise RunError(f"{name} ended with code {process.returncode} and no result; its words stand above")
    result: dict[str, Any] = found["result"]
    return result


def finished(config: RunConfig, folder: Path) -> RunResult | None:
    """Read the result of a finished run of this config, or None where there is none yet.

    Raises ConfigError when the folder holds a run of another config.
    """
    if not (folder / "config.json").exists():
        return None
    there, wanted = read_config(folder), config.model_dump(mode="json")
    for key in wanted:
        if there.get(key) != wanted[key]:
            other = f"{folder} holds a run with {key} {there.get(key)}, not {wanted[key]}"
            raise ConfigError(f"{other}; choose another --out, or delete it")
    result = read_result(folder)
    return None if result is None else from_json(result)


@final
class _Child:
    """The other side of the pipe."""

    def __init__(self, process: subprocess.Popen[str], tell: Tell) -> None:
        self._process, self._tell = process, tell
        self._ready = self._asked = False

    def interrupt(self) -> None:
        """Pass Ctrl-C on, as soon as the child can take it."""
        self._asked = True
        if self._ready:
            self._process.send_signal(signal.SIGINT)

    def listen(self, lines: Iterable[str]) -> dict[str, Any]:
        """Hear the child out, and return its last word."""
        found: dict[str, Any] = {}
        for line in lines:
            said = json.loads(line)
            if "progress" in said:
                self._tell(Progress(**said["progress"]))
            elif "warning" in said:
                warn(said["warning"]["code"], said["warning"]["message"])
            else:
                found = said
            if not self._ready:
                self._ready = True
                if self._asked:
                    self._process.send_signal(signal.SIGINT)
        return found
