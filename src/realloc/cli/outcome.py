"""How a command ends: exit codes, and one line instead of a traceback for what a user can mend.

0 done; 1 a run or a disk failed, or a folder is no place for the run; 2 usage or config; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

import typer

from realloc.errors import ConfigError, ReallocError, ReallocWarning, plain
from realloc.train.stop import Interrupted

FAILED, USAGE, INTERRUPTED = 1, 2, 130

_show_other = warnings.showwarning


@contextmanager
def told() -> Iterator[None]:
    """Around a command: errors become one line on stderr and an exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show
            warnings.simplefilter("always", ReallocWarning)
            yield
    except ConfigError as error:
        _end(f"error: {error}", USAGE)
    except ReallocError as error:
        _end(f"error: {error}", FAILED)
    except Interrupted as error:
        _end(str(error), INTERRUPTED)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # the reader is gone: say nothing more, also not when Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None


def talk(line: str) -> None:
    """Say something to the user."""
    typer.echo("\n".join(plain(part) for part in line.split("\n")), err=True)


def data(text: str) -> None:
    """Print a result for people."""
    typer.echo(text)


def data_json(content: object) -> None:
    """Print a result for programs: one object on one line."""
    typer.echo(json.dumps(content, allow_nan=False))


def _end(line: str, code: int) -> NoReturn:
    talk(line)
    raise typer.Exit(code) from None


def _show(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    if issubclass(category, ReallocWarning):
        talk(f"warning: {message}")
    else:
        _show_other(message, category, filename, lineno, file, line)
