"""What a backward tells its site."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from kernel_cases import case

from realloc.kernels import taps
from realloc.kernels.ops import packed_linear, packed_weight
from realloc.kernels.taps import DEEPEST, Notice, Tap


def test_a_backward_is_counted_and_an_armed_one_captured():
    one = case((12, 8), (2, 3))
    packed_linear(*one.linear()).sum().backward()
    assert (one.tap.touched, one.tap.rows, one.tap.pairs) == (1, 6, [])
    one.tap.armed = True
    packed_linear(*one.linear()).sum().backward()
    ((x, gy),) = one.tap.pairs
    assert (one.tap.touched, one.tap.rows) == (2, 12)
    assert torch.equal(x, one.x.detach().view(6, 8)) and torch.equal(gy, torch.ones_like(gy)) and gy.shape == (6, 12)
    assert not x.requires_grad and not gy.requires_grad
    one.tap.reset()
    assert (one.tap.touched, one.tap.rows, one.tap.armed, one.tap.pairs, one.tap.dense) == (0, 0, False, [], [])


def test_a_forward_alone_is_not_counted():
    one = case()
    packed_linear(*one.linear())
    assert one.tap.touched == 0


def test_a_captured_tensor_that_was_overwritten_is_known():
    one = case()
    one.tap.armed = True
    x = one.x.detach().clone()
    packed_linear(*one.changed(x=x).linear()).sum().backward()
    assert not one.tap.overwritten()
    x.zero_()
    assert one.tap.overwritten()


@pytest.mark.parametrize("compute", [0, 1])
@pytest.mark.parametrize("batch", [(5,), (2, 3), ()])
def test_a_relu_in_place_around_the_layer_does_not_disturb_the_pair(batch, compute):
    one = case((12, 8), batch, compute=compute)
    one.tap.armed = True
    hidden = torch.relu_(one.x * 1.0)
    torch.relu_(packed_linear(*one.changed(x=hidden).linear())).sum().backward()
    assert torch.equal(one.tap.pairs[0][0], one.x.detach().relu().view(-1, 8))
    assert not one.tap.overwritten()


def test_reading_the_weight_is_counted_with_its_dense_gradient():
    one = case((12, 8))
    one.tap.armed = True
    gw = torch.randn(12, 8, dtype=torch.float64)
    packed_weight(*one.weight()).backward(gw)
    assert one.tap.touched == 1 and torch.equal(one.tap.dense[0], gw)


def test_a_copy_is_independent_unarmed_and_has_its_own_number():
    tap = Tap()
    tap.armed = tap.listens = True
    tap.arrived.add(0)
    tap.note(Notice(0, 3, pair=(torch.zeros(3, 1), torch.zeros(3, 1)), versions=(0, 0)))
    for other in (copy.deepcopy(tap), pickle.loads(pickle.dumps(tap))):
        assert other.number != tap.number and taps.find(other.number) is other
        assert (other.armed, other.listens, other.touched, other.pairs, other.arrived) == (False, False, 0, [], set())
        assert other.walk is None
    shared = copy.deepcopy([tap, tap])
    assert shared[0] is shared[1]


def test_backwards_that_never_arrive_are_not_kept_for_ever():
    """`torch.autograd.grad` for inputs, again and again: none of it is for the weights."""
    tap = Tap(listens=True)
    tap.arrived.add(5)
    for task in range(500):
        tap.note(Notice(task, 1))
    assert len(tap.seen) <= DEEPEST + 2
    assert {5, 499} <= {notice.task for notice in tap.seen}
    for task in range(500, 1000):  # micro-batches that did arrive are all kept
        tap.arrived.add(task)
        tap.note(Notice(task, 1))
    assert {5, *range(500, 1000)} <= {notice.task for notice in tap.seen}


def test_a_tap_that_is_gone_and_number_zero_are_ignored():
    tap = Tap()
    number = tap.number
    del tap
    gc.collect()
    assert taps.find(number) is None
    for other in (number, 0):
        taps.notify(other, torch.zeros(1, 1), torch.zeros(1, 1))
        taps.notify_dense(other, torch.zeros(1, 1))
    one = case()
    del_number = one.linear()[:-1]
    packed_linear(*del_number, 0).sum().backward()
