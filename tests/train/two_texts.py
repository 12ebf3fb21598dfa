"""A small run whose detector looks at images and captions, over one or two processes: python two_texts.py FOLDER DEVICES."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import captioned
import torch

import falseneg as fn
from falseneg.train import SGD, embeddings, fit


def detector_of(modality):
    clusters = {"warmup": "0%", "acceptance": 0.8, "restarts": 1}
    return fn.AnyOf(
        [
            fn.IncrementalClusters([6], modality=modality, **clusters),
            fn.NeighbourGraph(5, eigenvectors=4, share=0.1, attract=0.0, modality=modality, refresh=["1 epoch"]),
        ]
    )


def text_run(devices=1, **options):
    embeddings.AT_ONCE = 20  # several batches, the last one of fewer images and not on both ranks
    torch.manual_seed(0)
    arguments = {"stem_width": 8, "channels": [8, 8, 16, 16], "norm_layer": "layernorm2d"}
    encoder = fn.Encoder("resnet10t", image_size=8, arguments=arguments)
    method = fn.CLIP(encoder, fn.TextEncoder(width=16, layers=1, heads=2, context_length=12), dim=16)
    usual = {
        "method": method.double(),  # in float32 another order of sums would flag other pairs
        "temperature": fn.LearnedTemperature().double(),
        "optimiser": SGD(0.05),
        "batch_size": 33,  # ranks of 17 and 16 images
        "detector": detector_of("text"),
        "devices": devices,
        "accelerator": "cpu",
        "evaluate_every": "3 epochs",
        "checkpoint_every": None,
    }
    return captioned.pair_run(**{**usual, **options})


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(text_run(int(sys.argv[2])), sys.argv[1])
