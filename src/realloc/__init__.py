"""realloc moves a fixed, exact parameter budget to where it pays while a PyTorch model trains."""

from realloc import export, methods, nn
from realloc.accounts import Account, accounts
from realloc.attach import attach, prepare
from realloc.cache.settings import Cache
from realloc.calibrate import calibrate
from realloc.depths import probe_depths
from realloc.handle import Handle
from realloc.hot_row_handle import HotRowHandle
from realloc.indexed import indexed
from realloc.layer_handle import LayerHandle
from realloc.rate_handle import RateHandle
from realloc.row_handle import RowHandle
from realloc.schedule import every
from realloc.scores.logit_gradient import logit_gradient
from realloc.shorten import shorten
from realloc.time_layers import cost_table
from realloc.visits import Visits

__all__ = [
    "Account",
    "Cache",
    "Handle",
    "HotRowHandle",
    "LayerHandle",
    "RateHandle",
    "RowHandle",
    "Visits",
    "accounts",
    "attach",
    "calibrate",
    "cost_table",
    "every",
    "export",
    "indexed",
    "logit_gradient",
    "methods",
    "nn",
    "prepare",
    "probe_depths",
    "shorten",
]

__version__ = "0.1.0"
