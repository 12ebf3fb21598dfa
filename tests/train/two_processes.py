"""A small run over one or two processes, without BatchNorm.

python two_processes.py FOLDER DEVICES PIECES STOP RESUME CROPS; with "crops" the support views are crops of two sizes
that are positives, too.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from train.parts import tiny_encoder, tiny_run

import falseneg as fn
from falseneg.data import Crops
from falseneg.train import SGD, fit


class StopRankOne(fn.InfoNCE):
    """A signal reaches one of the processes only."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step == self._step and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(contrast, stats, tau, strategy, clock)


def run_of(devices, pieces, stop=-1, crops=False):
    encoder = tiny_encoder(norm_layer="layernorm2d", drop_rate=0.0, drop_path_rate=0.0)
    method = fn.SimCLR(encoder, head_dim=16, support_views=0 if crops else 1, support_as_positives=crops)
    method.head[1] = torch.nn.LayerNorm(encoder.feature_dim)
    return tiny_run(
        method=method.double(),  # in float32 another order of sums would flag other pairs
        multi_crop=[Crops(1, 6, (0.1, 0.4)), Crops(2, 4, (0.1, 0.4))] if crops else None,
        temperature=fn.LearnedTemperature().double(),
        objective=StopRankOne(stop),
        optimiser=SGD(0.02),
        batch_size=33,  # ranks of 17 and 16 images
        devices=devices,
        accelerator="cpu",
        accumulate=pieces,
        checkpoint_every=None,
        evaluate_every="2 epochs",
    )


if __name__ == "__main__":
    folder, devices, pieces, stop, resume, crops = sys.argv[1:]
    torch.set_num_threads(1)
    fit(run_of(int(devices), int(pieces), int(stop), crops == "crops"), folder, resume=resume == "resume")
