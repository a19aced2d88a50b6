"""Widths on the command line: hidden layers of its nets that get wider and narrower under one budget."""

from __future__ import annotations

import torch
from torch import nn

import realloc.train.models as models
from realloc.methods.width_method import WidthMethod
from realloc.plan import StartPlan
from realloc.prepare_widths import describe_widths, plan_widths
from realloc.train.dataset import Dataset


def over(method: WidthMethod, spec: str, data: Dataset) -> WidthMethod:
    """The method as a model wants it: FLOPs of a convolution depend on the size of the images."""
    if method.currency == "FLOPs" and models.parse(spec)[0] == "cnn":
        return method.on(example=torch.zeros(1, data.features))
    return method


def start_of(model: nn.Module, method: WidthMethod) -> StartPlan:
    """The table of a start.

    Raises:
        ConfigError: no hidden layer whose width can move, or a budget below one unit a layer.
    """
    return describe_widths(plan_widths(model, method), method)
