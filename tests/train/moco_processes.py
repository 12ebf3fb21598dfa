"""A small run of MoCo with multi-crop, without BatchNorm: python moco_processes.py FOLDER DEVICES PIECES."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from train.parts import tiny_encoder, tiny_run

import falseneg as fn
from falseneg.data import Crops
from falseneg.train import SGD, fit


def run_of(devices, pieces):
    encoder = tiny_encoder(norm_layer="layernorm2d", drop_rate=0.0, drop_path_rate=0.0)
    options = {"symmetric": True, "prediction_layers": 1, "denominator": "both", "momentum": 0.9}
    options |= {"support_as_positives": True, "support_from_main": True}
    return tiny_run(
        # In float32 another order of sums would flag other pairs.
        method=fn.MoCo(encoder, head_layers=1, head_dim=16, bank=900, **options).double(),
        multi_crop=[Crops(1, 6, (0.1, 0.4)), Crops(2, 4, (0.1, 0.4))],
        temperature=fn.LearnedTemperature().double(),
        optimiser=SGD(0.02),
        batch_size=33,  # ranks of 17 and 16 images
        devices=devices,
        accelerator="cpu",
        accumulate=pieces,
        checkpoint_every=None,
    )


if __name__ == "__main__":
    folder, devices, pieces = sys.argv[1:]
    torch.set_num_threads(1)
    fit(run_of(int(devices), int(pieces)), folder)
