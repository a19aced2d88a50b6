"""The house holds itself in order. Each exception below stands in a table with its reason."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import realloc
from kinds import kind_of
from realloc import methods
from realloc.allocate.prefix import depths_of

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "realloc"
FILES = sorted(SOURCE.rglob("*.py"))

# Data goes one way: a room imports only from rooms further left or above (docs/architecture.md).
ORDER = (
    "errors", "rng", "schedule", "plan", "modes", "sizes",
    "kernels", "cache",
    "scores", "grow", "allocate", "select", "nn",
    "sites", "pool", "observe",
    "depths", "shorten", "methods", "choose", "choose_columns", "prepare", "choose_linear", "prepare_ranks",
    "prepare_deltas", "choose_tables", "prepare_rows", "calibrate",
    "find_widths", "try_widths", "find_blocks", "find_coupled", "choose_widths", "prepare_widths",
    "release", "acquire", "decide", "decide_ranks", "decide_layers", "decide_hot_rows", "ledger", "decide_widths",
    "apply", "record",
    "stand", "collect", "decider", "weight_decider", "rank_decider", "width_decider",
    "complaints", "bind", "links", "engine", "tell_widths", "handle",
    "layers", "layer_checks", "trial", "layer_handle", "time_layers", "attach_layers",
    "rows", "row_handle", "attach_rows",
    "rates", "rate_handle", "attach_rates", "hot_rows", "hot_row_handle", "attach_hot_rows",
    "first_forward", "attach_slots", "attach",
    "accounts",
    "indexed", "epoch", "visits",
    "export", "testing", "train", "compare", "finetune", "integrations", "cli", "realloc",
)  # fmt: skip

LAZY = {
    "realloc.kernels.team -> realloc.kernels.compiled": "numba comes when the first kernel runs, not with realloc",
}
FROM_PACKAGE = {
    "realloc.train.settings -> realloc.methods": "its names are the names on the command line",
}
HOOKS = {
    "attach_slots": "installs those of units with slots", "attach_layers": "installs those of layers",
    "attach_rows": "installs those of embedding rows",
    "attach_rates": "installs those of shares of learning rate",
    "attach_hot_rows": "installs those of rows that ids own",
    "sites": "a layer whose width moves hears of its own backward by a hook on what it gives out",
    "choose_widths": "sees once how much each layer gives out, and takes its hooks off before it returns",
    "time_layers": "sees once what enters each layer, and takes its hooks off before it returns",
}  # fmt: skip
LONG: dict[str, str] = {}  # over 60 lines, never over 100
WIDE = {
    "realloc.kernels": "operators of torch.library take plain tensors and numbers, no objects",
    "realloc.cli": "typer reads a command's options from its parameters",
}
ANYTHING = {
    "realloc.integrations.transformers.on_init_end": "the signature of transformers' callbacks",
    "realloc.integrations.transformers.on_train_begin": "the same",
    "realloc.integrations.transformers.on_epoch_end": "the same",
    "realloc.cache.gate.__call__": "stands for any block's forward, whose arguments are the block's own",
}
WRITES = {
    "realloc.finetune.fit: clip_grad_norm_": "the loop is a user's own, and clips as users do",
    "realloc.observe.candidate_sums: add_": "sums over candidates, a buffer of its own",
    "realloc.observe.candidate_sums: copy_": "where those of each site lie, a buffer of its own",
    "realloc.observe.candidate_sums: zero_": "the same",
    "realloc.observe.impressions: add_": "sums of gradients, a buffer of its own",
    "realloc.observe.impressions: copy_": "the step of the last decision, a buffer of its own",
    "realloc.observe.impressions: zero_": "the sums, when an interval ends",
    "realloc.observe.layers: add_": "sums of gradients, a buffer of its own",
    "realloc.observe.layers: copy_": "the norms of those sums, a buffer of its own",
    "realloc.observe.layers: zero_": "the sums, when an interval ends",
    "realloc.observe.plasticity: copy_": "the reference copy of a layer, a buffer of its own",
    "realloc.sites.masked: masked_fill_": "masks a gradient before anybody reads it; values and state stay untouched",
    "realloc.kernels.rank_product: addmm_": "into an output and a gradient that it has just made",
    "realloc.kernels.rank_product: mul_": "the same",
    "realloc.kernels.rank_product: copy_": "the same",
    "realloc.kernels.rank_graph: mul_": "into a product that it has just made",
    "realloc.kernels.rank_graph: copy_": "into a gradient that it has just made",
    "realloc.observe.gradients: mul_": "a running mean of the gradient, a buffer of its own",
    "realloc.observe.gradients: add_": "the same",
    "realloc.kernels.gather: copy_": "the gather of a move, called by apply and pool only",
    "realloc.kernels.reference: copy_": "the plain reference beside it",
    "realloc.kernels.reference: masked_fill_": "the same",
    "realloc.kernels.compute: copy_": "fills a gradient that it has just made",
    "realloc.kernels.delta: add_": "into a sum that it has just made",
    "realloc.kernels.delta: addmm_": "into a product that it has just made",
    "realloc.kernels.candidates: addmm_": "a sum it has just made",
    "realloc.scores.topology: clamp_min_": "a count it has just made",
    "realloc.select.sampled: clamp_min_": "random numbers it has just drawn",
    "realloc.select.sampled: log_": "the same, and a copy of the scores",
    "realloc.finetune.head: normal_": "a head that is being made",
    "realloc.finetune.head: zeros_": "the same",
    "realloc.train.fashion_mnist: sub_": "pixels",
    "realloc.train.fashion_mnist: div_": "pixels",
    "realloc.train.id_tables: mul_": "a layer that is being made",
    "realloc.record.tree: copy_": "a tensor read from a file, with its strides",
    "realloc.record.moments: optimizer.state": "puts a saved state back where it was, at load",
    "realloc.record.moments: .grad": "of a throwaway tensor that shows what state an optimizer makes",
    "realloc.nn.rows: normal_": "a layer that is being made",
    "realloc.nn.rows: zeros_": "the same",
    "realloc.nn.quotient_remainder: normal_": "the same",
    "realloc.nn.double_hashing: normal_": "the same",
    "realloc.testing.weights: mul_": "the judge's own reference model, never the user's",
}
ROOMS_OF_WRITES = ("realloc.apply", "realloc.pool.")
DEPTHS = depths_of([torch.ones(3), torch.arange(3) / 9, torch.zeros(3)])
MADE_WITH: dict[str, dict[str, object]] = {
    "Method": {"density": 0.25}, "RankMethod": {"rank": 4}, "DeltaMethod": {"budget": 8},
    "ColumnMethod": {"k": 4},
    "permuted_rates": {"method": methods.llrd()}, "rho": {"irreducible": torch.zeros(4)},
    "fixed": {"ranks": {"layer": 4}}, "focus": {"depths": DEPTHS},
}  # fmt: skip
CONTROLS = {"fixed", "full", "permuted_rates", "random_layers", "random_moves", "random_ranks", "static"}
CONTROLS |= {"random_columns", "random_widths", "uniform_widths"}


def name_of(path: Path) -> str:
    parts = ("realloc", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {name_of(path): path for path in FILES}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
BY_MODULE = pytest.mark.parametrize("module", MODULES)


def imports(node: ast.AST) -> Iterator[str]:
    """Own modules that a tree imports, also for types only."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from (a.name for a in found.names if a.name.split(".")[0] == "realloc")
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, "no relative imports"
            if found.module and found.module.split(".")[0] == "realloc":
                for alias in found.names:
                    deeper = f"{found.module}.{alias.name}"
                    yield deeper if deeper in MODULES else found.module


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module}.{node.name}", node


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


# order ------------------------------------------------------------------------------------------------------------


def test_every_room_stands_in_the_order() -> None:
    assert {room_of(module) for module in MODULES} == set(ORDER)


@BY_MODULE
def test_a_room_imports_only_from_rooms_before_it(module: str) -> None:
    mine = room_of(module)
    for other in imports(tree_of(MODULES[module])):
        theirs = room_of(other)
        assert theirs == mine or ORDER.index(theirs) < ORDER.index(mine), f"{module} imports {other}"


def test_no_import_cycles() -> None:
    graph = {module: set(imports(tree_of(path))) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@BY_MODULE
def test_a_leaf_imports_leaves(module: str) -> None:
    """Never a package's own names: importing one leaf must not load the room."""
    if module in PACKAGES:
        return
    for other in imports(tree_of(MODULES[module])):
        assert other not in PACKAGES or f"{module} -> {other}" in FROM_PACKAGE, f"{module} imports the package {other}"


@BY_MODULE
def test_no_own_import_inside_a_function(module: str) -> None:
    for name, node in functions(module):
        for other in imports(node):
            assert f"{module} -> {other}" in LAZY, f"{name} imports {other}"


# shape ------------------------------------------------------------------------------------------------------------


@BY_MODULE
def test_a_file_fits_in_the_head(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400


@BY_MODULE
def test_a_function_fits_on_a_page_and_takes_few_things(module: str) -> None:
    wide = any(module == room or module.startswith(room + ".") for room in WIDE)
    for name, node in functions(module):
        lines = node.end_lineno - node.lineno + 1
        assert lines <= (100 if name in LONG else 60), f"{name} has {lines} lines"
        parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([p for p in parameters if p not in ("self", "cls")])
        assert wide or count <= 8, f"{name} takes {count}"
        assert node.args.kwarg is None or name in ANYTHING, f"{name} takes **{node.args.kwarg.arg}"


@cache
def followed() -> set[str]:
    """Names of classes that others inherit from."""
    return {
        base.id
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }


@BY_MODULE
def test_classes_are_final_or_meant_to_be_followed(module: str) -> None:
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith("Mixin"), f"{module}.{node.name}"
            marks = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
            protocol = any(isinstance(b, ast.Name) and b.id in ("Protocol", "NamedTuple") for b in node.bases)
            assert protocol or node.name in followed() or "final" in marks, f"{module}.{node.name} is not @final"


def test_no_drawers_for_odds_and_ends() -> None:
    names = {part.lower() for path in FILES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc", "mixins"}


@BY_MODULE
def test_all_is_sorted_and_true(module: str) -> None:
    for node in tree_of(MODULES[module]).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names = ast.literal_eval(node.value)
            assert list(names) == sorted(set(names)), module
            assert all(hasattr(sys.modules.get(module) or __import__(module, fromlist=["_"]), n) for n in names)


# who may do what --------------------------------------------------------------------------------------------------

HOOK = re.compile(r"^register_(\w*_)?hook$")
IN_PLACE = re.compile(r"^(?!requires_grad_$|and_$|or_$|not_$)[a-z][a-z0-9_]*[a-z0-9]_$")


@BY_MODULE
def test_hooks_are_installed_in_one_place(module: str) -> None:
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.Attribute) and HOOK.match(node.attr):
            assert room_of(module) in HOOKS, f"{module}:{node.lineno} {node.attr}"


def writes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """In-place tensor methods, and assignments to values, gradients and optimizer state."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if IN_PLACE.match(node.func.attr):
                yield node.func.attr, node.lineno
            if node.func.attr in ("pop", "clear", "update") and ast.unparse(node.func.value).endswith(
                "optimizer.state"
            ):
                yield "optimizer.state", node.lineno
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AugAssign) else targets
        for target in targets:
            text = ast.unparse(target)
            if re.search(r"\boptimizer\.state\[", text):
                yield "optimizer.state", node.lineno
            if isinstance(target, ast.Subscript) and re.search(r"\.detach\(\)|\bparameter\[|\.data\b", text):
                yield "values", node.lineno
            if isinstance(target, ast.Attribute) and target.attr in ("data", "grad"):
                yield f".{target.attr}", node.lineno


@BY_MODULE
def test_parameters_and_optimizer_state_are_written_in_one_place(module: str) -> None:
    if module.startswith(ROOMS_OF_WRITES):
        return
    for what, line in writes(tree_of(MODULES[module])):
        assert f"{module}: {what}" in WRITES, f"{module}:{line} writes by {what}"


def test_no_exception_has_outlived_its_reason() -> None:
    """An entry of a table that nothing needs any more goes."""
    found = {f"{m}: {what}" for m in MODULES for what, _ in writes(tree_of(MODULES[m]))}
    assert set(WRITES) <= found, set(WRITES) - found
    long = {n for m in MODULES for n, node in functions(m) if node.end_lineno - node.lineno + 1 > 60}
    assert set(LONG) <= long, set(LONG) - long
    lazy = {f"{m} -> {other}" for m in MODULES for _, node in functions(m) for other in imports(node)}
    assert set(LAZY) <= lazy, set(LAZY) - lazy


@BY_MODULE
def test_nothing_is_run_that_came_from_a_file(module: str) -> None:
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name.split(".")[0] for a in node.names} | {getattr(node, "module", None) or ""}
            assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, module
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("eval", "exec", "__import__"), f"{module}:{node.lineno}"
            for keyword in node.keywords:
                unsafe = keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is False
                assert not unsafe, f"{module}:{node.lineno}"


def test_the_engine_knows_no_kind_of_method_or_pool() -> None:
    """A new kind of unit with slots writes a decider, and leaves the order of a step alone."""
    kinds = {"realloc.methods", "realloc.pool.flat", "realloc.pool.masked", "realloc.pool.ranks", "realloc.pool.widths"}
    assert kinds <= MODULES.keys()
    for other in imports(tree_of(MODULES["realloc.engine"])):
        assert not any(other == kind or other.startswith(kind + ".") for kind in kinds), other


# what goes with it ------------------------------------------------------------------------------------------------


def test_the_import_is_light() -> None:
    heavy = ("numba", "llvmlite", "typer", "click", "rich", "pydantic", "sklearn", "scipy", "pandas", "matplotlib",
             "filelock", "transformers", "lightning", "realloc.cli", "realloc.train", "realloc.compare")  # fmt: skip
    code = (
        "import torch, sys; before = set(sys.modules); import realloc; "
        f"print(sorted(set({heavy}) & set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_types_are_shipped() -> None:
    assert (SOURCE / "py.typed").exists()


@pytest.mark.parametrize("name", methods.__all__)
def test_a_method_cites_its_paper_and_has_its_page(name: str) -> None:
    method = getattr(methods, name)(**MADE_WITH.get(name, MADE_WITH.get(kind_of(name), {})))
    assert method.name == name
    assert name in CONTROLS or re.fullmatch(r"\d{4}\.\d{4,5}", method.reference), method.reference
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert f"realloc.methods.{name}`" in page and method.reference in page


def test_public_names_are_those_of_the_readme() -> None:
    assert {"attach", "every", "export", "methods", "prepare"} <= set(realloc.__all__)


def test_nothing_of_one_machine_is_in_the_tree() -> None:
    """Paths and tools of a workshop stay there."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    foreign = re.compile("/wo" + r"rk/|farm" + "-studio|(?:^|[\\s/\"'`])\\.libr" + "ary", re.M)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2_000_000:
            found = foreign.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert found is None, f"{name}: {found.group()!r}"


def test_every_warning_says_what_to_do() -> None:
    lines = [line for file in FILES for line in file.read_text().splitlines() if not line.lstrip().startswith(">>>")]
    used = set(re.findall(r'"(RA\d{3})"', "\n".join(lines)))
    told = set(re.findall(r"^\| (RA\d{3}) \|", (ROOT / "docs" / "warnings.md").read_text(), re.MULTILINE))
    assert used == told
