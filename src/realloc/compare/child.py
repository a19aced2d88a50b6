"""One run in a process of its own, so that its memory is its own: ``python -m realloc.compare.child``.

Reads one JSON job from stdin. Writes JSON lines to stdout: ``progress``, ``warning``, and at the end ``result``,
``interrupted`` or ``error``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from realloc.errors import ReallocError, ReallocWarning
from realloc.train.config import run_config
from realloc.train.progress import Progress, Tell
from realloc.train.run import run_in
from realloc.train.stop import Interrupted


def main() -> None:
    """Run the job."""
    serve(lambda job, tell: run_in(Path(job["folder"]), run_config(job["config"]), tell).as_json())


def serve(run: Callable[[Mapping[str, Any], Tell], Mapping[str, Any]]) -> None:
    """Take one job from stdin, and say on stdout what becomes of it; ``run`` gives the result as JSON can hold it."""
    warnings.showwarning = _warned
    warnings.simplefilter("always", ReallocWarning)
    job = json.loads(sys.stdin.read())
    try:
        _say("result", run(job, _told))
    except ReallocError as error:
        _say("error", {"kind": type(error).__name__, "message": str(error)})
    except (Interrupted, KeyboardInterrupt):
        _say("interrupted", True)


def _say(kind: str, content: object) -> None:
    sys.stdout.write(json.dumps({kind: content}) + "\n")
    sys.stdout.flush()


def _told(progress: Progress) -> None:
    _say("progress", asdict(progress))


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    # our own are "[RA001] words": the code goes apart, so that it is not written twice
    ours = isinstance(message, ReallocWarning)
    code, _, words = str(message)[1:].partition("] ") if ours else ("RA500", "", f"{category.__name__}: {message}")
    _say("warning", {"code": code, "message": words})


if __name__ == "__main__":
    main()
