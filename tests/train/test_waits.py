"""Where a step waits for a GPU, found without one: every operation that has to, by the function of falseneg it stands in.

What sees the matrix (`falseneg.statistics`, the rules) is left out: on a GPU it has ways of its own.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from train.parts import Unlabelled, digits, tiny_encoder, tiny_run

import falseneg as fn
from falseneg.train import fit, loop

SOURCE = str(Path(fn.__file__).parent)
NUMBERS_TO_THE_HOST = ("_local_scalar_dense", "equal")
SHAPES_THAT_DEPEND_ON_VALUES = (
    *("nonzero", "masked_select", "isin", "bincount", "repeat_interleave"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
)
NUMBERS_FROM_THE_HOST = ("lift_fresh",)  # a list or a number of Python's becomes a tensor
WAITING = {*NUMBERS_TO_THE_HOST, *SHAPES_THAT_DEPEND_ON_VALUES, *NUMBERS_FROM_THE_HOST}
IMAGES, BATCH = 480, 160
INSIDE = IMAGES // BATCH + 1
"""A step of the second epoch, neither its first nor its last."""


class Enough(Exception):
    pass


class Operations(TorchDispatchMode):
    """Counts operations that wait, by file and function."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masks or (name in WAITING and kwargs.get("output_size") is None):
            note(self.found)
        return function(*args, **kwargs)


class Calls(TorchFunctionMode):
    """Counts copies to the host, which are no operations where the host is the device."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("cpu", "numpy", "tolist"):
            note(self.found)
        return function(*args, **(kwargs or {}))


def note(found):
    """Add the innermost function of falseneg that is running."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
        if "torch/optim" in frame.f_code.co_filename:
            return  # counts its steps on the host
        frame = frame.f_back
    if frame is None:
        found["outside"] += 1
        return
    file = Path(frame.f_code.co_filename).relative_to(SOURCE).as_posix()
    if file.startswith("statistics/") or file == "rules.py":
        return
    if frame.f_code.co_qualname == "SampleTable._check":
        return  # looks on a CPU only
    found[f"{file} {frame.f_code.co_qualname}"] += 1


@pytest.fixture
def waits(monkeypatch, tmp_path):
    """Trains up to `INSIDE`, and gives for each step, from 0, where it waited."""
    plain_step, plain_after = loop.step, loop.after_step
    of_steps = []

    def step(session, batch):
        of_steps.append(Counter())
        with Calls(of_steps[-1]), Operations(of_steps[-1]):
            return plain_step(session, batch)

    def after(*what):
        with Calls(of_steps[-1]), Operations(of_steps[-1]):
            plain_after(*what)
        if len(of_steps) > INSIDE:
            raise Enough

    monkeypatch.setattr(loop, "step", step)
    monkeypatch.setattr(loop, "after_step", after)

    def train(**options):
        # Of 5 epochs the second and the fourth are not recorded.
        usual = {"data": digits(IMAGES), "batch_size": BATCH, "epochs": 5, "log_every": 1000, "checkpoint_every": None}
        usual |= {"method": fn.SimCLR(tiny_encoder()), "detector": fn.NoDetection()}
        usual |= {"temperature": fn.FixedTemperature(0.2)}
        with pytest.raises(Enough):
            fit(tiny_run(**{**usual, **options}), tmp_path / "run")
        return of_steps

    return train


LOSS = {"train/step.py start_fetching.<locals>.<lambda>": 1}
SUPPORT = {"method": lambda: fn.SimCLR(tiny_encoder(), support_views=2), "strategy": lambda: fn.ATTRACT}
GLOFND = {"detector": lambda: fn.GlobalThreshold(0.1), "strategy": fn.ELIMINATE.renormalised}
GLOBAL = {"objective": lambda: fn.GlobalContrastive(rho=0.3), "temperature": fn.IndividualTemperature}
V3 = {"bank": 0, "symmetric": True, "denominator": "batch", "prediction_layers": 2, "views": 3}
ONLY_FOR_THE_LOSS = {
    "SimCLR": {"temperature": fn.LearnedTemperature},
    "SimCLR, 3 views, in pieces": {"method": lambda: fn.SimCLR(tiny_encoder(), views=3), "accumulate": lambda: 2},
    "MoCo, bank": {
        "method": lambda: fn.MoCo(tiny_encoder(), bank=400),
        "detector": lambda: fn.BatchQuantile(0.05, part="bank"),
    },
    "MoCo v3": {"method": lambda: fn.MoCo(tiny_encoder(), **V3)},
    "FNC, top k": {**SUPPORT, "detector": lambda: fn.SupportSet(top_k=8)},
    "FNC, threshold": {**SUPPORT, "detector": lambda: fn.SupportSet(threshold=0.7)},
    "GloFND": GLOFND,
    "GloFND, first one for all": {**GLOFND, "detector": lambda: fn.GlobalThreshold(0.1, shared_until="1 epoch")},
    "IFND": {
        "detector": lambda: fn.IncrementalClusters([5, 10, 20], warmup="0 epochs", acceptance=1.0),
        "objective": fn.OwnDenominators,
        "strategy": lambda: fn.ATTRACT_OUTSIDE,
    },
    "iSogCLR": GLOBAL,
}


@pytest.mark.parametrize("name", ONLY_FOR_THE_LOSS)
def test_a_step_waits_for_its_loss_and_for_nothing_else(waits, name):
    found = waits(**{option: make() for option, make in ONLY_FOR_THE_LOSS[name].items()})
    assert found[INSIDE] == LOSS


def test_without_labels_nothing_more_is_waited_for(waits):
    images = Unlabelled()
    images.inside = digits(IMAGES)
    method = fn.MoCo(tiny_encoder(), bank=400)
    assert waits(data=images, method=method, detector=fn.BatchQuantile(0.05))[INSIDE] == LOSS


def test_the_first_visits_ask_whether_they_are_the_first(waits):
    found = waits(**{option: make() for option, make in GLOFND.items()})
    assert [step["detectors/global_threshold.py GlobalThreshold._learn"] for step in found] == [1, 1, 1, 0, 0]


def test_a_global_objective_asks_whether_filtering_starts(waits):
    found = waits(**{option: make() for option, make in {**GLOBAL, **GLOFND}.items()})
    assert found[INSIDE] - Counter(LOSS) == {"objectives/global_contrastive.py GlobalContrastive.observe": 1}


def test_a_list_of_neighbours_waits_in_the_statistics_alone(waits, tmp_path):
    path = tmp_path / "neighbours.npy"
    np.save(path, np.random.default_rng(0).integers(0, IMAGES, (IMAGES, 5)))
    assert waits(detector=fn.Neighbours(path))[INSIDE] == LOSS


@pytest.mark.parametrize(
    "look", [lambda x: x[0].item(), lambda x: x[x > 0], lambda x: x[[0, 1]], lambda x: bool(x.any())]
)
def test_one_look_more_is_found(waits, look):
    class Curious(fn.NoDetection):
        def flag(self, contrast, clock):
            look(contrast.positives.detach().flatten())
            return super().flag(contrast, clock)

    assert waits(detector=Curious())[INSIDE] - Counter(LOSS) == {"losses.py Criterion.forward": 1}


def test_a_list_of_pairs_asks_for_its_bounds_once(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "note", lambda found: found.update(waits=1))
    listed = fn.Listed(torch.tensor([0, 2, 3, 3]), torch.tensor([1, 5, 4]))
    found, flags = Counter(), []
    with Calls(found), Operations(found):
        for cols in (slice(0, 3), slice(3, 6)):
            flags.append(listed.tile(slice(0, 3), cols, torch.zeros(3, 3)))
    assert found == {"waits": 1}
    assert torch.cat(flags, dim=1).nonzero().tolist() == [[0, 1], [0, 5], [1, 4]]
