"""``realloc``: demo, finetune, train, compare, inspect, resume, methods, info."""

from __future__ import annotations

import typer

from realloc.cli.compare import compare
from realloc.cli.demo import demo
from realloc.cli.finetune import finetune
from realloc.cli.look import info, inspect, methods
from realloc.cli.train import resume, train

app = typer.Typer(
    name="realloc",
    help="Move a fixed, exact parameter budget to where it pays while a model trains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, finetune, train, compare, inspect, resume, methods, info):
    app.command()(command)

if __name__ == "__main__":
    app()
