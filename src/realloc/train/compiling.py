"""Says so when kernels are compiled: the first run waits for it some seconds, and silence looks like a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final


@contextmanager
def announced(say: Callable[[], None]) -> Iterator[None]:
    """Inside, call ``say`` once when Numba begins to compile; a kernel that comes from a cache says nothing."""
    from numba.core import event

    @final
    class Once(event.Listener):  # type: ignore[misc]
        """Hears compiler passes: they run only where there is code to compile."""

        def __init__(self) -> None:
            self.said = False

        def on_start(self, event: Any) -> None:
            if not self.said:
                self.said = True
                say()

        def on_end(self, event: Any) -> None:
            """Nothing to say."""

    with event.install_listener("numba:run_pass", Once()):
        yield
