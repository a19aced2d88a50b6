# ruff: noqa: NPY002  the global stream must be restored too
from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from realloc.errors import ReallocWarning, RecordError
from realloc.record.checkpoint import load_latest, save
from realloc.record.state import pack, unpack

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "momentum-fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw-lr-tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
SCHEDULERS = {
    "none": None,
    "step": lambda o: lr_scheduler.StepLR(o, 3),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [3, 9]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=40),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(48, 5)
        self.tied = nn.Linear(48, 5, bias=False)
        self.tied.weight = self.fc.weight

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.fc(self.drop(x)) + self.tied(x)


class Training:
    """A loop that draws from every stream; two of them with equal steps must end bit-equal."""

    def __init__(self, optimizer="adamw", scheduler=None, seed=0, dtype=torch.float32, channels_last=False):
        torch.manual_seed(seed)
        self.model = Net().to(dtype)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        groups = [{"params": list(self.model.conv.parameters()), "weight_decay": 0.0}]
        groups += [{"params": [*self.model.norm.parameters(), *self.model.fc.parameters()]}]
        self.optimizer = OPTIMIZERS[optimizer](groups)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer) if scheduler and SCHEDULERS[scheduler] else None
        self.generators = {"own": torch.Generator().manual_seed(seed), "np": np.random.default_rng(seed)}
        self.dtype, self.step = dtype, 0

    @property
    def parts(self):
        return {"scheduler": self.scheduler} if self.scheduler else {}

    def run(self, steps):
        for _ in range(steps):
            x = torch.randn(8, 2, 4, 4, generator=self.generators["own"]) * (1 + random.random())
            x = x + float(np.random.rand()) + float(self.generators["np"].random())
            loss = self.model(x.to(self.dtype)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(float(loss.detach()))
            elif self.scheduler:
                self.scheduler.step()
            self.step += 1

    def save(self, folder):
        packed = pack(self.model, self.optimizer, {"step": self.step}, parts=self.parts, generators=self.generators)
        save(folder, self.step, packed.tensors, packed.state)

    def load(self, folder):
        found = load_latest(folder)
        extra = unpack(
            found.tensors, found.state, self.model, self.optimizer, parts=self.parts, generators=self.generators
        )
        self.step = extra["step"]


def leaves(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{name}/{index}")
    else:
        yield name, value


def assert_equal(a, b):
    a, b = dict(leaves(a)), dict(leaves(b))
    assert list(a) == list(b)
    for name, x in a.items():
        y = b[name]
        assert type(x) is type(y), name
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride(), name
            assert torch.equal(x, y), name
        else:
            assert x == y or (x != x and y != y), name


def everything(training):
    state = [training.model.state_dict(), training.optimizer.state_dict()]
    return [dict(s) for s in state] + [p.state_dict() for p in training.parts.values()]


def seed_all():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def resumes(tmp_path, **settings):
    seed_all()
    straight = Training(**settings)
    straight.run(5)
    straight.save(tmp_path)
    at_save = copy.deepcopy(everything(straight))
    straight.run(4)

    random.seed(99)
    np.random.seed(99)
    resumed = Training(**settings, seed=7)  # other weights, other streams: all must come from the checkpoint
    resumed.run(2)
    fresh = Training(**settings, seed=8)
    for training in (resumed, fresh):
        training.load(tmp_path)
        assert_equal(everything(training), at_save)
        training.run(4)
        assert_equal(everything(training), everything(straight))
        assert torch.equal(training.generators["own"].get_state(), straight.generators["own"].get_state())
    assert fresh.model.fc.weight is fresh.model.tied.weight


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_resume_bit_equal(tmp_path, optimizer):
    resumes(tmp_path, optimizer=optimizer)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw-fused"])
def test_schedulers_resume_bit_equal(tmp_path, scheduler, optimizer):
    resumes(tmp_path, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["nadam", "radam", "adamw-fused", "adamax", "rmsprop", "asgd"])
def test_other_dtypes_resume_bit_equal(tmp_path, optimizer, dtype):
    resumes(tmp_path, optimizer=optimizer, dtype=dtype)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused", "momentum-fused"])
def test_channels_last_resumes_bit_equal(tmp_path, optimizer):
    resumes(tmp_path, optimizer=optimizer, channels_last=True)


def test_tied_tensors_are_stored_once():
    training = Training()
    packed = pack(training.model, training.optimizer, {})
    assert "model/fc.weight" in packed.tensors and "model/tied.weight" not in packed.tensors


def test_tied_here_but_not_there():
    training, other = Training(), Training()
    other.model.tied.weight = nn.Parameter(torch.randn(5, 48))
    packed = pack(other.model, other.optimizer, {})
    with pytest.raises(RecordError, match=r"'tied.weight' and 'fc.weight'.*tied here but differ"):
        unpack(packed.tensors, packed.state, training.model, training.optimizer)
    packed = pack(training.model, training.optimizer, {})  # the other way round nothing is lost
    unpack(packed.tensors, packed.state, other.model, other.optimizer)
    assert torch.equal(other.model.tied.weight, training.model.fc.weight)


def test_parts_and_extra_state(tmp_path):
    class Counting(nn.Linear):
        seen = 0

        def get_extra_state(self):
            return {"seen": self.seen, "range": (0, 1)}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    def make():
        model = Counting(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        parts = {"ema": torch.optim.swa_utils.AveragedModel(model), "scaler": torch.amp.GradScaler("cpu")}
        return model, optimizer, parts

    model, optimizer, parts = make()
    model.seen = 41
    parts["ema"].update_parameters(model)
    parts["scaler"].scale(torch.ones(1))
    parts["scaler"].update(256.0)
    packed = pack(
        model, optimizer, {"order": {"seed": 3, "epoch": 1, "position": 640}, "best": float("nan")}, parts=parts
    )
    save(tmp_path, 1, packed.tensors, packed.state)
    other, again, others = make()
    found = load_latest(tmp_path)
    extra = unpack(found.tensors, found.state, other, again, parts=others)
    assert extra["order"] == {"seed": 3, "epoch": 1, "position": 640} and extra["best"] != extra["best"]
    assert other.seen == 41 and others["scaler"].get_scale() == 256.0
    assert int(others["ema"].n_averaged) == 1 and torch.equal(others["ema"].module.weight, model.weight)
    # What was loaded lives on its own: the checkpoint's file may go.
    with torch.no_grad():
        other.weight.add_(1)
    assert torch.equal(load_latest(tmp_path).tensors["model/weight"], model.weight)


def test_streams():
    training = Training()
    seed_all()
    random.gauss(0, 1)
    np.random.randn(3)
    torch.randn(3)
    packed = pack(training.model, training.optimizer, {}, generators=training.generators)
    drawn = [torch.rand(2).tolist(), np.random.randn(2).tolist(), random.gauss(0, 1), random.random()]
    own = [torch.rand(1, generator=training.generators["own"]).item(), training.generators["np"].random()]
    unpack(packed.tensors, packed.state, training.model, training.optimizer, generators=training.generators)
    assert drawn == [torch.rand(2).tolist(), np.random.randn(2).tolist(), random.gauss(0, 1), random.random()]
    assert own == [torch.rand(1, generator=training.generators["own"]).item(), training.generators["np"].random()]


def wrong_model(t):
    t.model.fc = nn.Linear(48, 6)


def extra_layer(t):
    t.model.fd = nn.Linear(2, 2)


def other_dtype(t):
    t.model.norm.running_mean = t.model.norm.running_mean.double()


def swapped(t):
    group = t.optimizer.param_groups[1]
    group["params"][0], group["params"][1] = group["params"][1], group["params"][0]


def fewer_groups(t):
    t.optimizer = OPTIMIZERS["adamw"](t.model.parameters())
    t.scheduler = SCHEDULERS["step"](t.optimizer)


def other_optimizer(t):
    t.optimizer = torch.optim.SGD(t.model.parameters(), 0.1)


def other_scheduler(t):
    t.scheduler = SCHEDULERS["cosine"](t.optimizer)


def no_scheduler(t):
    t.scheduler = None


def no_generator(t):
    t.generators.pop("own")


def other_generator(t):
    t.generators["np"] = np.random.Generator(np.random.Philox(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_model, r"'fc.weight' of the model is \(5, 48\).*and \(6, 48\).*config.json"),
        (extra_layer, "lacks entry of the model 'fd.weight'; nearest"),
        (other_dtype, "norm.running_mean.*float32 in the checkpoint.*float64 here"),
        (swapped, "optimizer group 1 differ.*norm.weight.*became.*norm.bias"),
        (fewer_groups, "had 2 groups and has 1"),
        (other_optimizer, "of optimizer AdamW, this is SGD"),
        (other_scheduler, "part 'scheduler' was a StepLR and is a CosineAnnealingLR"),
        (no_scheduler, "holds part 'scheduler', unknown here"),
        (no_generator, "generator 'own' is not given"),
        (other_generator, "random stream"),
    ],
)
def test_all_or_nothing(change, message):
    source = Training(scheduler="step")
    source.run(2)
    packed = pack(source.model, source.optimizer, {}, parts=source.parts, generators=source.generators)
    target = Training(scheduler="step", seed=3)
    target.run(1)
    change(target)
    before, stream = copy.deepcopy(everything(target)), torch.get_rng_state()
    with pytest.raises(RecordError, match=message):
        unpack(
            packed.tensors,
            packed.state,
            target.model,
            target.optimizer,
            parts=target.parts,
            generators=target.generators,
        )
    assert_equal(everything(target), before)
    assert torch.equal(torch.get_rng_state(), stream)


def moments(state):
    return state["optimizer"]["state"]["state"]["items"][0][1]


def vanish(tensors, state):
    tensors.pop("model/fc.bias")


def grow(tensors, state):
    tensors["optimizer/state/0/exp_avg"] = torch.zeros(10_000)


def shrink(tensors, state):
    tensors["optimizer/state/0/exp_avg_sq"] = torch.zeros(1)


def half(tensors, state):
    tensors["optimizer/state/0/exp_avg"] = tensors["optimizer/state/0/exp_avg"].half()


def number_for_tensor(tensors, state):
    moments(state)["exp_avg"] = 3


def text_for_tensor(tensors, state):
    moments(state)["exp_avg"] = "x"


def missing_moment(tensors, state):
    moments(state).pop("exp_avg_sq")


def unknown_parameter(tensors, state):
    state["optimizer"]["state"]["state"]["items"][0][0] = 77


def no_rate(tensors, state):
    state["optimizer"]["state"]["param_groups"][0].pop("lr")


def odd_rate(tensors, state):
    state["optimizer"]["state"]["param_groups"][0]["lr"] = "fast"


def odd_ids(tensors, state):
    state["optimizer"]["state"]["param_groups"][0]["params"] = [0, 0]


def newer(tensors, state):
    state["v"] = 2


def emptied(tensors, state):
    state.clear()


def lists(tensors, state):
    state["model"] = []


def bad_stream(tensors, state):
    tensors["random/torch"] = torch.zeros(10, dtype=torch.uint8)


def bad_python(tensors, state):
    state["random"]["python"]["items"][1]["items"] = [1, 2]


def bad_numpy(tensors, state):
    state["random"]["numpy"]["state"]["pos"] = 10**9


def short_numpy(tensors, state):
    tensors["random/numpy/state/key"] = torch.zeros(3, dtype=torch.uint32)


def wide_rate(tensors, state):
    tensors["wide"] = torch.ones(1000)
    state["optimizer"]["state"]["param_groups"][0]["lr"] = {"$": "tensor", "name": "wide"}


def odd_betas(tensors, state):
    state["optimizer"]["state"]["param_groups"][0]["betas"] = [0.9]


@pytest.mark.parametrize("live", [False, True], ids=["fresh", "stepped"])
@pytest.mark.parametrize(
    "change",
    [
        vanish, grow, shrink, half, number_for_tensor, text_for_tensor, missing_moment, unknown_parameter, no_rate,
        odd_rate, odd_ids, newer, emptied, lists, bad_stream, bad_python, bad_numpy,
        short_numpy, wide_rate, odd_betas,
    ],
)  # fmt: skip
def test_hostile_states_change_nothing(change, live):
    source = Training(optimizer="adamw-fused")
    source.run(2)
    packed = pack(source.model, source.optimizer, {})
    tensors, state = dict(packed.tensors), copy.deepcopy(packed.state)
    change(tensors, state)
    target = Training(optimizer="adamw-fused", seed=3)
    target.run(int(live))
    before, stream = copy.deepcopy(everything(target)), torch.get_rng_state()
    with pytest.raises(RecordError):
        unpack(tensors, state, target.model, target.optimizer)
    assert_equal(everything(target), before)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(
    ("stream", "key", "value"),
    [
        (np.random.MT19937, "pos", 10**9), (np.random.MT19937, "pos", -1), (np.random.Philox, "buffer_pos", 99),
        (np.random.PCG64, "has_uint32", 5), (np.random.PCG64, "uinteger", "x"), (np.random.SFC64, "more", 1),
    ],
)  # fmt: skip
def test_hostile_numpy_generators(stream, key, value):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generators = {"g": np.random.Generator(stream(3))}
    packed = pack(model, optimizer, {}, generators=generators)
    drawn = generators["g"].random()
    unpack(packed.tensors, packed.state, model, optimizer, generators=generators)
    assert generators["g"].random() == drawn
    state = packed.state["random"]["named"]["g"]
    (state["state"] if key in state["state"] else state)[key] = value
    with pytest.raises(RecordError, match=r"random stream"):
        unpack(packed.tensors, packed.state, model, optimizer, generators=generators)
    generators["g"].random(10)


def test_a_model_that_learned_nothing_yet():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    model.bias.grad = None  # so AdamW keeps no state for it
    optimizer.step()
    packed = pack(model, optimizer, {})
    unpack(packed.tensors, packed.state, model, optimizer)
    assert len(optimizer.state_dict()["state"]) == 1


def test_unknown_types_are_named():
    training = Training()
    with pytest.raises(RecordError, match=r"'extra/loader' is a builtins.object"):
        pack(training.model, training.optimizer, {"loader": object()})


def test_other_threads_are_told():
    training = Training()
    packed = pack(training.model, training.optimizer, {})
    packed.state["made_with"]["threads"] += 1
    with pytest.warns(ReallocWarning, match=r"RA301.*threads \d+ -> \d+"):
        unpack(packed.tensors, packed.state, training.model, training.optimizer)
    packed = pack(training.model, training.optimizer, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unpack(packed.tensors, packed.state, training.model, training.optimizer)
