"""Every method by name. A new one costs its file and one line here."""

from realloc.methods.adalora import adalora
from realloc.methods.auto_rgn import auto_rgn
from realloc.methods.autofreeze import autofreeze
from realloc.methods.badam import badam
from realloc.methods.chts import chts
from realloc.methods.columns import columns
from realloc.methods.continual_backprop import continual_backprop
from realloc.methods.egeria import egeria
from realloc.methods.entryprune import entryprune
from realloc.methods.eva import eva
from realloc.methods.examples import examples
from realloc.methods.fixed import fixed
from realloc.methods.focus import focus
from realloc.methods.full import full
from realloc.methods.gmp import gmp
from realloc.methods.gora import gora
from realloc.methods.gradmax import gradmax
from realloc.methods.gradnorm import gradnorm
from realloc.methods.granet import granet
from realloc.methods.gse import gse
from realloc.methods.importance import importance
from realloc.methods.infobatch import infobatch
from realloc.methods.itop import itop
from realloc.methods.layer_gradient import layer_gradient
from realloc.methods.lisa import lisa
from realloc.methods.llrd import llrd
from realloc.methods.lora import lora
from realloc.methods.loss_change import loss_change
from realloc.methods.morphnet import morphnet
from realloc.methods.narrow import narrow
from realloc.methods.neurofs import neurofs
from realloc.methods.para import para
from realloc.methods.permuted_rates import permuted_rates
from realloc.methods.quickselection import quickselection
from realloc.methods.random_columns import random_columns
from realloc.methods.random_layers import random_layers
from realloc.methods.random_moves import random_moves
from realloc.methods.random_ranks import random_ranks
from realloc.methods.random_widths import random_widths
from realloc.methods.rank_gradient import rank_gradient
from realloc.methods.rates import rates
from realloc.methods.redo import redo
from realloc.methods.rho import rho
from realloc.methods.rigl import rigl
from realloc.methods.rows import rows
from realloc.methods.rs2 import rs2
from realloc.methods.shira import shira
from realloc.methods.smet import smet
from realloc.methods.snfs import snfs
from realloc.methods.sparse_evolution import sparse_evolution
from realloc.methods.spiel import spiel
from realloc.methods.static import static
from realloc.methods.tempbalance import tempbalance
from realloc.methods.topk import topk
from realloc.methods.touched_rows import touched_rows
from realloc.methods.uniform_widths import uniform_widths
from realloc.methods.width import width

__all__ = [
    "adalora", "auto_rgn", "autofreeze", "badam", "chts", "columns", "continual_backprop", "egeria", "entryprune",
    "eva", "examples", "fixed", "focus", "full", "gmp", "gora", "gradmax", "gradnorm", "granet", "gse", "importance",
    "infobatch", "itop", "layer_gradient", "lisa", "llrd", "lora", "loss_change", "morphnet", "narrow", "neurofs",
    "para", "permuted_rates", "quickselection", "random_columns", "random_layers", "random_moves", "random_ranks",
    "random_widths", "rank_gradient", "rates", "redo", "rho", "rigl", "rows", "rs2", "shira", "smet", "snfs",
    "sparse_evolution", "spiel", "static", "tempbalance", "topk", "touched_rows", "uniform_widths", "width",
]  # fmt: skip
