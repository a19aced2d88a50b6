"""What ties an engine to a model and an optimizer, and the ways from a module to what is its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from realloc.errors import StateError

T = TypeVar("T")
Served = weakref.WeakKeyDictionary[torch.optim.Optimizer, list[Callable[[], nn.Module | None]]]
TAKEN: Final[Served] = weakref.WeakKeyDictionary()  # the optimizers that serve an attached model, and which


def refuse_taken(optimizer: torch.optim.Optimizer, among: Served = TAKEN, root: nn.Module | None = None) -> None:
    """One optimizer serves one attached model, whether its weights, ranks or layers move; and one with rows of ids.

    Args:
        optimizer: that is to serve another handle.
        among: those that serve one.
        root: a model that several handles may share, as far as they said so themselves.

    Raises:
        StateError: it serves one already.
    """
    if any(root is None or served() is not root for served in among.get(optimizer, ())):
        raise StateError(
            "this optimizer serves an attached model already; detach() that handle first, or put both models into one "
            "nn.ModuleDict and attach that"
        )


@final
class Link(Generic[T]):
    """A way from a module to something that is its own, such as its engine: a copied or pickled module has none.

    >>> import copy
    >>> link, layer = Link[str]("realloc_example"), nn.Linear(1, 1)
    >>> link.put(layer, "its engine")
    >>> link.of(layer), link.of(copy.deepcopy(layer))
    ('its engine', None)
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def of(self, module: nn.Module) -> T | None:
        """Where it leads."""
        found = module.__dict__.get(self.name)
        return found.thing if isinstance(found, _Own) else None

    def put(self, module: nn.Module, thing: T) -> None:
        """Let it lead there."""
        module.__dict__[self.name] = _Own(thing)

    def drop(self, module: nn.Module) -> None:
        """Take it off."""
        module.__dict__.pop(self.name, None)


@final
class _Own:
    """What a module keeps of a link."""

    def __init__(self, thing: Any = None) -> None:
        self.thing = thing

    def __deepcopy__(self, memo: dict[int, Any]) -> _Own:
        return _Own()

    def __reduce__(self) -> tuple[type[_Own], tuple[()]]:
        return (_Own, ())


@final
class Tie:
    """All that was put on a model and its optimizer for one engine, to be taken off in the same order.

    >>> tie, done = Tie(), []
    >>> tie.until(lambda: done.append("first"))
    >>> tie.until(lambda: done.append("second"))
    >>> tie.attached, tie.undo(), tie.undo(), tie.attached, done
    (True, None, None, False, ['first', 'second'])
    """

    def __init__(self) -> None:
        self._ends: list[Callable[[], object]] = []

    @property
    def attached(self) -> bool:
        """Whether anything is on: false before `attach` has ended, and once detached."""
        return bool(self._ends)

    def require(self) -> None:
        """Refuse work after detach.

        Raises:
            StateError: nothing is on.
        """
        if not self.attached:
            raise StateError("this handle is detached; attach() again")

    def hook(self, *hooks: RemovableHandle) -> None:
        """These hooks are on."""
        self._ends += [hook.remove for hook in hooks]

    def serve(self, optimizer: torch.optim.Optimizer, among: Served = TAKEN, root: nn.Module | None = None) -> None:
        """The optimizer serves this handle, and is among those that serve one; ``root`` may have more of its kind."""
        mine = weakref.ref(root) if root is not None else lambda: None
        among.setdefault(optimizer, []).append(mine)
        self._ends.append(lambda: among[optimizer].remove(mine) if optimizer in among else None)

    def until(self, act: Callable[[], object]) -> None:
        """What else it takes to be off."""
        self._ends.append(act)

    def undo(self) -> None:
        """Take everything off; a second call does nothing."""
        ends, self._ends = self._ends, []
        for end in ends:
            end()


@final
class Hook:
    """A hook that runs ``act``; the one of a copied or pickled parameter or module does nothing."""

    def __init__(self, act: Callable[[], None] | None = None) -> None:
        self.act = act

    def __call__(self, *told: object) -> None:
        """Run, whatever it is told: the parameter, the gradient that is about to reach it, what was loaded."""
        if self.act is not None:
            self.act()

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return (Hook, ())
