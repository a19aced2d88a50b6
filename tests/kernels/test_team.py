"""Where kernels run, and what is kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from kernel_cases import case

from realloc.errors import ConfigError
from realloc.kernels import compiled, team
from realloc.kernels.dispatch import choose_compute, not_supported
from realloc.kernels.ops import packed_linear

HERE = Path(__file__).parent


def python(code: str, **environment: str) -> str:
    """Run code in a fresh process that must end well; its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="torch on Linux comes with OpenMP's own launcher")
def test_kernels_run_on_the_threads_of_torch():
    assert team.openmp() is not None


def test_python_threads_give_the_same_bits(monkeypatch):
    one = case((300, 500), (200,), 0.1, torch.float32)
    gy = torch.randn(200, 300)

    def bits():
        out = packed_linear(*one.linear())
        return [out, *torch.autograd.grad(out, (one.x, one.values, one.bias), gy)]

    first = bits()
    monkeypatch.setattr(team, "openmp", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(first, bits(), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_computes_alone():
    code = """
        import os, warnings, torch
        warnings.simplefilter("ignore")
        from kernel_cases import case
        from realloc.kernels.ops import packed_linear
        one = case((300, 500), (200,), 0.1, torch.float32)
        parent = packed_linear(*one.linear())
        parent.sum().backward()
        child = os.fork()
        if child == 0:
            with torch.no_grad():
                os._exit(0 if torch.equal(packed_linear(*one.linear()), parent) else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert python(code).strip() == "0"


CACHED = """
    import torch
    from kernel_cases import case
    from realloc.kernels.ops import packed_linear
    from realloc.kernels import compiled
    one = case(dtype=torch.float32)
    packed_linear(*one.linear()).sum().backward()
    hits = [compiled._function(name, torch.float32).cache_hits for name in ("panels", "forward", "backward")]
    print(sum(hits))
"""


def test_the_cache_on_disk_serves_the_next_process(tmp_path):
    folder = tmp_path / "kernels"
    assert python(CACHED, REALLOC_KERNEL_CACHE=str(folder)).strip() == "0"
    assert python(CACHED, REALLOC_KERNEL_CACHE=str(folder)).strip() == "3"
    if hasattr(os, "getuid"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_nothing_is_written(monkeypatch):
    monkeypatch.delenv(compiled.CACHE, raising=False)
    compiled.cache_folder.cache_clear()
    assert compiled.cache_folder() is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners")
def test_a_cache_of_another_user_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(compiled.CACHE, str(tmp_path))
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    compiled.cache_folder.cache_clear()
    with pytest.raises(ConfigError, match="belongs to user"):
        compiled.cache_folder()
    compiled.cache_folder.cache_clear()


def test_dispatch_says_why():
    assert not_supported("cpu", torch.float32) == []
    assert "cuda" in not_supported("cuda", torch.float32)[0]
    assert "bfloat16" in not_supported("cpu", torch.bfloat16)[0]
    assert len(not_supported("meta", torch.bfloat16)) == 2
    assert choose_compute("cpu", torch.float32, 0.05) == 0
    assert choose_compute("cpu", torch.float32, 0.9) == 1
    assert choose_compute("cpu", torch.bfloat16, 0.01) == 1


def test_importing_the_operations_does_not_import_numba():
    assert python("import sys, realloc.kernels.ops; print('numba' in sys.modules)").strip() == "False"
