"""A cache that nobody asks: the frozen layers are computed, and nothing would say so."""

from __future__ import annotations

from typing import Final, final

from realloc.cache.passage import Passage

QUIET: Final = 10  # steps without a look-up that are nothing to tell


@final
class Unasked:
    """Told after each optimizer step; says once that a prefix which is to be read was never looked up."""

    def __init__(self, passage: Passage | None) -> None:
        self._passage = passage
        self._steps = 0

    def after_step(self) -> None:
        """Count a step in which the passage was to be asked, and was not yet."""
        passage = self._passage
        if passage is None:
            return
        if passage.asked:
            self._passage = None
        elif passage.prefix.reading and not passage.paused:
            self._steps += 1
            if self._steps > QUIET:  # RA105 of a model that is not trained at all comes first
                passage.say(
                    "RA106",
                    f"the cache of the frozen layers was asked for nothing in {self._steps} steps: they are computed "
                    "each time. Is this the model you train, is it compiled (torch.compile goes past the cache), is "
                    "model.forward called in place of model, or is it in eval mode?",
                )
