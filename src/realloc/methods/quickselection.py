"""QuickSelection: train with every input, then keep the strongest."""

from __future__ import annotations

from realloc.methods.column_method import ColumnMethod
from realloc.methods.method import Method
from realloc.schedule import until_end
from realloc.scores.magnitude import magnitude


def quickselection(k: int | str = "10%") -> ColumnMethod:
    """Hold every input until the last step of the schedule, then the k of largest strength sum |w|.

    One cut, at the last due step of the schedule; nothing moves before it, and what is left trains on after it.

    Args:
        k: inputs held at the end, 1 to the number of inputs, or a part of them such as "10%".

    Raises:
        ConfigError: a k out of range; with the model known, one above its inputs.

    Reference: QuickSelection (2012.00560), its strength of an input neuron. Where we differ: the strength is that of
    the supervised model which is trained anyway (there: of a denoising autoencoder, trained for the choice alone); its
    layers are dense (there: sparse, rewired by SET).

    >>> made = quickselection(50).at("fc1.weight", 784)
    >>> made.held(0.99), made.held(1.0) * 784
    (1.0, 50.0)
    """

    def rule(k: int, inputs: int) -> Method:
        return Method("quickselection", k / inputs, keep=magnitude, held=until_end(1.0, k / inputs), settles=True)

    return ColumnMethod("quickselection", k, rule=rule, reference="2012.00560")
