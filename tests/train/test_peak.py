"""Peak memory: what is held at once over the start, however short, if it lasts a sample's time."""

import sys
import time

import pytest
import torch

from realloc.train.memory import Peak, highest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_peak_that_is_gone_at_the_end_is_seen() -> None:
    with Peak() as peak:
        held = torch.ones(10_000_000)
        time.sleep(0.1)
        del held
    assert peak.bytes is not None
    assert 38e6 < peak.bytes < 80e6


def test_what_was_there_before_does_not_count() -> None:
    held = torch.ones(10_000_000)
    with Peak() as peak:
        assert held.sum() > 0
    assert peak.bytes is not None and peak.bytes < 20e6


def test_building_is_told_apart_from_training() -> None:
    with Peak() as peak:
        held = torch.ones(20_000_000)
        time.sleep(0.05)
        del held
        peak.training()
        held = torch.ones(10_000_000)
        time.sleep(0.05)
        assert held.any()
    assert peak.bytes is not None and peak.training_bytes is not None
    assert 78e6 < peak.bytes < 120e6
    assert 38e6 < peak.training_bytes < 70e6


def test_highest_leaves_out_what_is_not_known() -> None:
    assert highest(None, 3, 1) == 3
    assert highest(None, None) is None
