"""The frozen prefix of a model: computed once for each example, read afterwards, in an untouched loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.cache.halves import CLOSED, READ, Halves, check_shape
from realloc.cache.inputs import Call, call_of
from realloc.cache.keys import Example
from realloc.cache.prefix import Prefix, lowered
from realloc.cache.settings import TOLD, Cache
from realloc.cache.store import Sealed, Store
from realloc.cache.watch import Watch
from realloc.errors import StateError, warn
from realloc.kernels.digest import digest

CLOSE: Final = 1e-3  # relative difference that other rows in a batch may make in float32
ROUNDING: Final = 1e-1  # and what a prefix in bfloat16 may


@final
class Passage:
    """Before a call of the base model it looks the examples up, and has the call begin above the frozen end.

    Args:
        base: the model whose inputs say what an example is.
        cache: the user's words; None: the frozen layers are computed each time.
        dropout: whether the frozen layers keep their dropout; then nothing can be read.
    """

    def __init__(self, base: nn.Module, cache: Cache | None, *, dropout: bool = False) -> None:
        self.base = base
        self.halves = Halves(base)
        self.cache = self._cache = cache  # of the prefixes to come
        self.paused = False  # while a decision wants the gradients of frozen blocks too
        self.resumed = False  # and the epoch in which it was is not over
        self._before = 0  # rows that were looked up before the first whole epoch
        self.off = False  # for good: too few examples were found again
        self.asked = False  # whether a call ever came that could be looked up
        self.prefix = Prefix()
        self._dropout = dropout
        self.say: Callable[[str, str], None] = warn
        self._awake: set[nn.Module] = set()  # modules of the prefix that would be training
        self._like: Tensor | None = None
        self._ragged = not isinstance(base, nn.Sequential)

    def freeze(self, end: int, lower: Sequence[nn.Module]) -> None:
        """Begin anew with a prefix of ``end`` gates (0: none), made of these modules."""
        reads = end > 0 and self.cache is not None and not self._dropout and not self.off
        self._close_store()
        self._take(Prefix(end, tuple(lower), Watch(self.base, lower), reads))

    def release(self) -> None:
        """Let what was frozen follow the model's train() again, and another model have the file."""
        self._close_store()
        self._take(replace(self.prefix, end=0))

    def aside(self) -> Prefix:
        """Put the prefix aside with all that was found of it. Those that come until it is put back are in memory."""
        kept = self.prefix
        self._take(Prefix())
        self.cache = None if self._cache is None else replace(self._cache, file=None)
        return kept

    def put_back(self, prefix: Prefix) -> None:
        """Take a prefix up again, its weights being what they were."""
        prefix.watch.accept()
        self._take(prefix)
        self.cache = self._cache

    def _take(self, prefix: Prefix) -> None:
        for module in self._awake:
            module.training = self.base.training
        self._awake.clear()
        self.prefix = prefix
        self.halves.end = prefix.end

    @property
    def end(self) -> int:
        """Gates of the prefix; 0: nothing is frozen."""
        return self.prefix.end

    @property
    def store(self) -> Store | None:
        """What was computed of it."""
        return self.prefix.store

    def seal(self) -> Sealed:
        """For a checkpoint: what a file holds now; zeros where there is no file."""
        store = self.store
        if store is None or store.rows.file is None:
            return self.prefix.sealed if store is None else Sealed()
        if self.prefix.watch.changed() or self._made() != store.rows.made:
            self._drop()
            return Sealed()
        return store.seal()

    def unseal(self, sealed: Sealed) -> None:
        """After a load: the table goes back to what the checkpoint had, or starts anew."""
        self._close_store()
        self.prefix.store, self.prefix.sealed, self.prefix.sure = None, sealed, False

    def epoch_over(self, examples: int) -> None:
        """An epoch has ended: the first whole one had as many rows as were looked up, where an example is several."""
        if self.cache is None or self._cache is None or self.cache.epoch != TOLD or self.store is None:
            return
        if self.resumed:  # in the middle of it, perhaps
            self.resumed, self._before = False, self.store.visits
            return
        self.store.tell(max(examples, self.store.visits - self._before))
        self.cache, self._cache = (replace(one, epoch=self.store.epoch) for one in (self.cache, self._cache))

    def _close_store(self) -> None:
        if self.store is not None:
            self.store.rows.close()

    def _drop(self) -> None:
        """A weight of the prefix is another one now."""
        self.say("RA102", "a weight, module or hook below the frozen end has changed: all that was cached is dropped")
        self.prefix.watch.accept()
        self.prefix.low = {}
        if self.cache is not None and self.cache.known is not None:
            self.cache.known.only(0)
        self.unseal(Sealed())

    def _made(self) -> int:
        """A digest of what rows in a file are made with."""
        assert self.cache is not None
        words = f"{self.end} {self.cache.dtype} {self.cache.compute}".encode()
        return digest([torch.tensor([self.prefix.watch.digest(), *words])])

    # around a call of the base ----------------------------------------------------------------------------------

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before it: look the examples up, compute those that are missing, and set the gates to reading."""
        if not self.end or self.halves.mode != CLOSED or not self.base.training:
            return None
        if not self._dropout:
            for module in self.prefix.lower:  # also after the user's model.train()
                if module.training:
                    self._awake.add(module)
                    module.training = False
        if self.paused or not self.prefix.reading or torch.compiler.is_compiling():
            return None
        self.asked = True
        call = call_of(self.base, args, kwargs)
        if call.refusal is not None:
            self.say("RA101", f"the frozen layers were computed, not read: {call.refusal}; nothing is gained so")
            return None
        if self.prefix.watch.changed():
            self._drop()
        examples = call.examples()
        if not examples:  # of no row there is nothing to read
            return None
        batch = self._fetch(call, examples)
        if self.store is not None and not self.store.pays:
            self.say(
                "RA103",
                "under 20 % of the examples were found again (is the data augmented?): the cache is off from here",
            )
            self._close_store()
            self.prefix.reading, self.prefix.store, self.off = False, None, True
        self.halves.open(batch)
        return (args, self.halves.without_cache(kwargs)) if self.halves.forward_caches else None

    def leave(self) -> None:
        """After it, also where it failed."""
        if self.halves.mode == READ:
            self.halves.close()

    def _fetch(self, call: Call, examples: list[Example]) -> Tensor:
        """What the prefix gives for a batch."""
        if not self.prefix.sure:
            self._make_sure(call, examples)
        store = self.store
        assert store is not None and self._like is not None
        missing = store.missing(examples)
        found = self._compute(call, missing) if missing else None
        if not missing:  # nearly all is known: the copies are not needed every step
            self.prefix.low = {}
        if found is not None and len(missing) > 1 and not self.prefix.apart:  # a row alone, and in company
            self._compare(self._compute(call, missing[:1]), found, missing[:1], examples)
            self.prefix.apart = True
        if found is not None:
            store.keep([examples[i] for i in missing], found)
            if store.rows.overflowed:
                self.say(
                    "RA104",
                    f"activations are too large for {store.rows.dtype}: such examples are computed each time, not "
                    "cached; scale the inputs, or take Cache(dtype='bfloat16')",
                )
        if store.rows.refusal:
            self.say(
                "RA107",
                f"the cache file has no more room on its disk ({store.rows.refusal}): what is there stays, the other "
                "examples are computed each time; make room and attach again, or name a file on another disk",
            )
        self.prefix.sure = True
        return store.batch(examples, call.columns, missing, found, self._like)

    def _compute(self, call: Call, index: Sequence[int]) -> Tensor:
        """The prefix of some rows, ``[b, t, width]`` or ``[b, ...]``."""
        assert self.cache is not None
        args, kwargs = call.rows(index)
        low = self.cache.compute == "bfloat16"
        if low and not self.prefix.low:
            self.prefix.low = lowered(self.base, self.prefix.lower)
        found = self.halves.lower(args, kwargs, self.prefix.low if low else {}, low=low)
        check_shape(self.base, found, len(index), call.columns if self._ragged else None)
        self._like = found.new_empty(0)
        return found

    def _make_sure(self, call: Call, examples: list[Example]) -> None:
        """Once for each prefix: a row or two must come out the same of the whole model, and from the frozen end on.

        Raises:
            StateError: a random layer that eval() does not switch off, a model whose upper layers read more than the
                block below them, or activations of another shape.
        """
        assert self.cache is not None
        few = 1 if call.columns == 2 else 2  # as many rows as tokens would hide that they are exchanged
        index = list(range(min(few, len(examples))))
        args, kwargs = call.rows(index)
        want = self.halves.whole(args, kwargs)
        found = self._compute(call, index)
        got = self.halves.upper(args, kwargs, found)
        self._compare(want, got, index, examples)
        store = self.store
        if store is None:
            shape = tuple(found.shape[2 if self._ragged else 1 :])
            made = 0 if self.cache.file is None else self._made()
            store = Store(self.cache, shape, ragged=self._ragged, made=made)
            store.reopen(self.prefix.sealed)
            for example, rows in self.cache.known.take(self.end) if self.cache.known else ():
                store.rows.write(example, rows)
            self.prefix.store = store
        held = [i for i, example in enumerate(examples) if store.rows.has(example)][:2]
        if held:
            stored = store.batch([examples[i] for i in held], call.columns, [], None, found)
            if not self._close(self._compute(call, held), stored, held, examples, ROUNDING):
                self.say("RA102", "the cache was made with other weights: all that was cached is dropped")
                store.rows.clear()

    def _compare(self, want: Tensor, got: Tensor, index: Sequence[int], examples: list[Example]) -> None:
        assert self.cache is not None
        narrow = got.element_size() < 4 or torch.is_autocast_enabled(got.device.type)  # the user's own
        tolerance = ROUNDING if narrow or self.cache.compute != "float32" else CLOSE
        if not self._close(want, got, index, examples, tolerance):
            raise StateError(
                f"the frozen layers of {type(self.base).__name__} do not give the same for one example each time: "
                "a random layer that eval() does not stop, a layer that mixes examples, or upper layers that read "
                "more than the block below them; train without the cache: cache=None"
            )

    def _close(
        self, want: Tensor, got: Tensor, index: Sequence[int], examples: list[Example], tolerance: float
    ) -> bool:
        """Whether the first rows agree where the examples have tokens."""
        for row, i in enumerate(index):
            part = slice(examples[i].first, examples[i].last) if self._ragged else slice(None)
            a, b = want[row][part].float(), got[row][part].float()
            if a.shape != b.shape or not float((a - b).abs().max()) <= tolerance * max(1.0, float(a.abs().max())):
                return False
        return True
