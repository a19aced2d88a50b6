"""The order of the rows is a function of seed and step."""

import torch

from realloc.train.dataset import Rows
from realloc.train.order import Batches


def rows(n: int) -> Rows:
    return Rows(torch.arange(n).float().unsqueeze(1), torch.arange(n))


def test_every_epoch_holds_every_row_once_in_another_order() -> None:
    batches = Batches(rows(23), 5, seed=0)
    epochs = [[int(i) for step in range(e * 5, e * 5 + 5) for i in batches.at(step)[1]] for e in range(2)]
    assert batches.per_epoch == 5
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1]
    assert len(batches.at(4)[1]) == 3


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    straight, jumping = Batches(rows(23), 5, seed=3), Batches(rows(23), 5, seed=3)
    wanted = [straight.at(step)[1] for step in range(20)]
    for step in (17, 3, 12, 0):
        assert torch.equal(jumping.at(step)[1], wanted[step])
    assert not torch.equal(Batches(rows(23), 5, seed=4).at(0)[1], wanted[0])


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert len(Batches(rows(3), 100, seed=0).at(7)[1]) == 3
