"""A small run over as many processes as options and environment say, without BatchNorm, in float64.

python many_processes.py FOLDER '{"method": "MoCo", "epochs": 4, …}'
"""

import datetime
import errno
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import captioned
import torch
import torch.distributed as dist
from train.parts import tiny_encoder, tiny_run

import falseneg as fn
from falseneg.data import Shards, Subset
from falseneg.train import SGD, fit, loop, pretrain
from falseneg.train.observers import accuracy


def sim_clr(encoder):
    method = fn.SimCLR(encoder, head_dim=16, support_views=1)
    method.head[1] = torch.nn.LayerNorm(encoder.feature_dim)
    return method


def open_clip_towers(encoder):
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tiny-sharded.json").write_text(json.dumps(captioned.TINY_OPEN_CLIP))
        open_clip.add_model_config(Path(folder) / "tiny-sharded.json")
        torch.manual_seed(0)
        return fn.OpenCLIP("tiny-sharded", support_texts=1)


METHODS = {
    "SimCLR": sim_clr,
    "MoCo": lambda encoder: fn.MoCo(
        encoder, head_dim=16, head_batch_norm=False, bank=70, momentum=0.9, support_views=1
    ),
    "OpenCLIP": open_clip_towers,
    "CLIP": lambda encoder: fn.CLIP(
        encoder, fn.TextEncoder(width=16, layers=2, heads=2, context_length=12), dim=16, support_texts=1
    ),
}
PAIRS = {"data": captioned.CaptionedDigits(), "test": captioned.CaptionedDigits("test", 60)}
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
    usual |= {"optimiser": SGD(0.02)} | (PAIRS if method.endswith("CLIP") else {})
    return tiny_run(
        method=METHODS[method](encoder).double(),  # in float32 another order of sums would flag other pairs
        detector=detector,
        objective=objective,
        temperature=temperature.double(),
        **{**usual, **options},
    )


def shard_run(shards, **options):
    """Two towers on webdataset's shards, with what is kept for each image and each text."""
    return captioned.pair_run(
        data=Shards(shards, label="name", caption="captions", cache=str(Path(shards).parent)),
        method=captioned.two_towers(support_texts=1),
        detector=fn.GlobalThreshold(alpha=0.2),
        objective=fn.GlobalContrastive(0.7, relative=True),
        test=None,
        holdout=0.0,
        **options,
    )


def refuse_to_sync():
    def fsync(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.fsync = fsync


def break_images():
    def image(self, row):
        raise fn.UserError(f"image {row} could not be read: {os.strerror(errno.EIO)}")

    Subset.image = image


HAPPENS = {
    "death": lambda: os._exit(9),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "full disk": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    "disk error": refuse_to_sync,
    "unreadable images": break_images,
}


def at_step(number, rank, what):
    """Something happens to one of the processes, before a step."""
    plain = loop.step

    def step(session, batch):
        if session.clock.step == number and session.fabric.global_rank == rank:
            HAPPENS[what]()
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


def note_rows(path):
    """Write down which images each step saw."""
    plain = loop.step

    def step(session, batch):
        with open(path, "a") as file:
            file.write(json.dumps([session.clock.step, batch.index.tolist()]) + "\n")
        return plain(session, batch)

    loop.step = step


def note_shares(path):
    """Write down how many numbers of weights and of the optimiser's state this process holds after a step, and of how many."""
    plain = loop.step

    def step(session, batch):
        stepped = plain(session, batch)
        state = session.learner.optimiser.state_dict()["state"]
        tensors = [*session.learner.method.parameters(), *(each for one in state.values() for each in one.values())]
        tensors = [each for each in tensors if isinstance(each, torch.Tensor) and each.ndim]
        held = sum(getattr(each, "_local_tensor", each).numel() for each in tensors)
        path.write_text(json.dumps([held, sum(each.numel() for each in tensors)]))
        return stepped

    loop.step = step


def free_port():
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return str(each.getsockname()[1])


def wait_for_lines(path, number, processes):
    """Until a process has begun that many steps, or ended."""
    while all(each.is_alive() for each in processes):
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.01)


def rows_of(noted):
    """The images of each step, as the last to take it saw them."""
    steps = {}
    for of_ranks in noted:
        lines = [json.loads(line) for path in of_ranks if path.exists() for line in path.read_text().splitlines()]
        taken = {}
        for step, rows in lines:
            taken.setdefault(step, []).extend(rows)
        steps |= taken
    return {step: sorted(rows) for step, rows in steps.items()}


def train(folder, variables, log, resume=False, wait=None, fault=None, rows=None, shares=None, build=run_of, **options):
    """What one of the processes does; what it says goes to a file."""
    os.environ.update({"OMP_NUM_THREADS": "1", **variables})
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    if wait is not None:
        slow_measuring(*wait)
    if fault is not None:
        at_step(*fault)
    if rows is not None:
        note_rows(rows)
    if shares is not None:
        note_shares(shares)
    try:
        fit(build(**options), folder, resume=resume)
    except fn.UserError as error:
        print(f"REFUSED {error}", flush=True)
        sys.exit(2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(run_of(**json.loads(sys.argv[2])), sys.argv[1])
