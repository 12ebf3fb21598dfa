"""A small run over as many processes as options and environment say, without BatchNorm, in float64.

python many_processes.py FOLDER '{"devices": 2, "fault": [3, 0, "SIGTERM"], "epochs": 4, …}'.
"""

import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from train.parts import tiny_encoder, tiny_run

import falseneg as fn
from falseneg.train import SGD, fit, loop, pretrain
from falseneg.train.observers import accuracy


def sim_clr(encoder):
    method = fn.SimCLR(encoder, head_dim=16, support_views=1)
    method.head[1] = torch.nn.LayerNorm(encoder.feature_dim)
    return method


METHODS = {
    "SimCLR": sim_clr,
    "MoCo": lambda encoder: fn.MoCo(
        encoder, head_dim=16, head_batch_norm=False, bank=70, momentum=0.9, support_views=1
    ),
}
FORMS = {
    "FNC": lambda: (fn.SupportSet(top_k=4), fn.InfoNCE(), fn.LearnedTemperature()),
    "GloFND": lambda: (fn.GlobalThreshold(0.1), fn.GlobalContrastive(rho=0.3), fn.IndividualTemperature()),
    "IFND": lambda: (
        fn.IncrementalClusters([4], warmup="1 epoch", acceptance=1.0),
        fn.InfoNCE(),
        fn.FixedTemperature(),
    ),
}


def run_of(method="SimCLR", form="FNC", **options):
    encoder = tiny_encoder(norm_layer="layernorm2d", drop_rate=0.0, drop_path_rate=0.0)
    detector, objective, temperature = FORMS[form]()
    usual = {"batch_size": 33, "accelerator": "cpu", "checkpoint_every": None, "evaluate_every": "100%"}
    return tiny_run(
        method=METHODS[method](encoder).double(),  # in float32 another order of sums would flag other pairs
        detector=detector,
        objective=objective,
        temperature=temperature.double(),
        optimiser=SGD(0.02),
        **{**usual, **options},
    )


def at_step(number, rank, what):
    """Something happens to one of the processes, before a step."""
    plain = loop.step

    def step(session, batch):
        if session.clock.step == number and session.fabric.global_rank == rank:
            if what == "death":
                os._exit(9)
            os.kill(os.getpid(), getattr(signal, what))
        return plain(session, batch)

    loop.step = step


def slow_measuring(seconds, patience):
    """Measuring takes longer than the processes wait for each other in what they do together."""
    plain, wait = accuracy.evaluate_features, pretrain.LongWait

    class Impatient(wait):
        def __init__(self, fabric):
            super().__init__(fabric)
            own = dist.group.WORLD._get_backend(torch.device("cpu"))
            own._set_default_timeout(datetime.timedelta(seconds=patience))

    def slow(*given):
        time.sleep(seconds)
        return plain(*given)

    pretrain.LongWait, accuracy.evaluate_features = Impatient, slow


if __name__ == "__main__":
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    resume = options.pop("resume", False)
    if wait := options.pop("wait", None):
        slow_measuring(*wait)
    if fault := options.pop("fault", None):
        at_step(*fault)
    try:
        fit(run_of(**options), folder, resume=resume)
    except fn.UserError as error:
        print(f"REFUSED {error}", flush=True)
        sys.exit(2)
