"""What is kept of a model that takes long to read: the same bytes or none, whoever wrote into the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import realloc.finetune.converted as module
import realloc.finetune.weights as weights
from realloc.errors import ConfigError, ReallocWarning
from realloc.finetune.config import finetune_config
from realloc.finetune.converted import CACHE, MANIFEST, cache_folder, converted

Make = Callable[[Path], None]


class Maker:
    """Writes the tiny model, and counts how often."""

    def __init__(self, tiny: Path) -> None:
        self.tiny, self.calls = tiny, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        transformers.AutoModel.from_pretrained(self.tiny).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(self.tiny).save_pretrained(folder)


@pytest.fixture
def make(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "source.gguf").write_bytes(b"GGUF" * 100)
    return Maker(tiny)


def kept(make: Maker, tmp_path: Path, maker: str = "transformers-5.0") -> Path:
    found = converted(tmp_path / "source.gguf", maker, make)
    assert found is not None
    return found


def test_a_model_is_made_once_and_its_bytes_are_the_same(make: Maker, tiny: Path, tmp_path: Path) -> None:
    folder = kept(make, tmp_path)
    assert kept(make, tmp_path) == folder and make.calls == 1
    one, other = load_file(tiny / "model.safetensors"), load_file(folder / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "nothing half made is left"


def test_another_source_or_maker_is_another_model_and_old_versions_go(make: Maker, tmp_path: Path) -> None:
    first = kept(make, tmp_path)
    second = kept(make, tmp_path, "transformers-6.0")
    assert make.calls == 2 and second != first and not first.exists() and second.exists()
    (tmp_path / "source.gguf").write_bytes(b"GGUF" * 101)
    third = kept(make, tmp_path, "transformers-6.0")
    assert make.calls == 3 and third != second and second.exists()


def flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def other_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)


def linked(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


def whole_link(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def piped(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def outside(folder: Path) -> None:
    data = (folder / MANIFEST).read_text().replace('"config.json"', '"../config.json"')
    (folder / MANIFEST).write_text(data)


@pytest.mark.parametrize(
    "harm",
    [
        flip, other_weights, linked, whole_link, piped, outside,
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_bytes(b"[" * 100_000),
        lambda folder: (folder / "own.py").write_text("raise SystemExit"),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    ],
)  # fmt: skip
def test_whatever_was_done_to_it_is_found_and_it_is_made_anew(harm: Make, make: Maker, tmp_path: Path) -> None:
    folder = kept(make, tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    harm(folder)
    with pytest.warns(ReallocWarning, match=r"RA302.*damaged and is made anew"):
        again = kept(make, tmp_path)
    assert again == folder and make.calls == 2 and not folder.is_symlink()
    assert (folder / "model.safetensors").read_bytes() == before and not (folder / "own.py").exists()
    assert kept(make, tmp_path) == folder and make.calls == 2


def test_a_folder_that_others_may_write_into_is_refused(make: Maker, tmp_path: Path) -> None:
    kept(make, tmp_path)
    models = tmp_path / "cache" / "models"
    models.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others may write into it; set REALLOC_CACHE to a folder of your own"):
        kept(make, tmp_path)
    models.rename(tmp_path / "moved")
    models.symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigError, match="others may write"):  # a link's own mode says that anybody may
        kept(make, tmp_path)


def test_where_nothing_can_be_kept_the_model_is_read_as_before(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(ReallocWarning, match=r"RA302.*cannot be kept"):
        assert converted(tmp_path / "source.gguf", "x", make) is None
    monkeypatch.setenv(CACHE, "off")
    assert cache_folder() is None and converted(tmp_path / "source.gguf", "x", make) is None and make.calls == 0


def test_a_cut_leaves_nothing_that_passes_for_whole(make: Maker, tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "source.gguf", "x", cut)
    assert not list((tmp_path / "cache" / "models").iterdir())
    left = tmp_path / "cache" / "models" / "tmp-1"  # of a process that was killed
    left.mkdir()
    os.utime(left, (0, 0))
    assert converted(tmp_path / "source.gguf", "x", make) is not None and not left.exists()


def test_the_usual_folder_is_that_of_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "realloc" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "realloc" / "models"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "realloc" / "models"


def test_a_gguf_model_is_loaded_from_what_is_kept(
    make: Maker, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder stands for a gguf file's model; a second load must not read the source again."""
    calls = []

    def convert(library: object, where: str, more: dict[str, object], folder: Path) -> None:
        assert where == str(tmp_path) and more["gguf_file"] == "source.gguf" and more["trust_remote_code"] is False
        calls.append(folder)
        transformers.AutoModelForCausalLM.from_pretrained(decoder).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(decoder).save_pretrained(folder)

    monkeypatch.setattr(weights, "_convert", convert)
    monkeypatch.setattr(weights, "model_folder", lambda name: (tmp_path, "source.gguf"))
    for task, kind in (("causal-lm", "LlamaForCausalLM"), ("text-classification", "LlamaModel")):
        found = weights.load(finetune_config({"model": "smollm2", "data": "x.txt", "task": task}), 3)
        assert type(found.base).__name__ == kind and (Path(found.name) / "config.json").is_file()
        wanted = transformers.AutoModelForCausalLM.from_pretrained(decoder).model.layers[0].mlp.up_proj.weight
        layers = found.base.model.layers if kind == "LlamaForCausalLM" else found.base.layers
        assert torch.equal(layers[0].mlp.up_proj.weight, wanted)
    assert len(calls) == 1
