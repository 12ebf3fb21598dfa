"""Any detector with any strategy, objective, temperature and method: a step of each combination is finite and moves."""

import itertools

import pytest
import torch

import falseneg as fn
from falseneg.clock import Clock

ROWS, IMAGES, CLASSES = 40, 8, 4
METHODS = {
    "SimCLR": lambda encoder: fn.SimCLR(encoder, head_dim=8, support_views=2),
    "multi-crop": lambda encoder: fn.SimCLR(encoder, head_dim=8, support_views=2, support_as_positives=True),
    "FNC released": lambda encoder: fn.SimCLR(encoder, head_dim=8, views=3, support_from_views=True),
    "MoCo v2": lambda encoder: fn.MoCo(encoder, head_dim=8, bank=24, support_views=2),
    "MoCo v3": lambda encoder: fn.MoCo(
        encoder, head_dim=8, prediction_layers=2, symmetric=True, bank=0, denominator="batch", support_views=2
    ),
    "MoCo, both": lambda encoder: fn.MoCo(
        encoder, head_dim=8, symmetric=True, bank=24, denominator="both", support_views=2, support_from_main=True
    ),
}
DETECTORS = {
    "none": fn.NoDetection,
    "FNC": lambda: fn.SupportSet(share=0.25),
    "FNC, both": lambda: fn.SupportSet(top_k=3, threshold=0.1, mean=True),
    "IFND": lambda: fn.IncrementalClusters(clusters=[3, 6], warmup="0 epochs", acceptance=0.8),
    "GloFND": lambda: fn.GlobalThreshold(0.25),
    "GloFND, shared": lambda: fn.GlobalThreshold(0.25, step=fn.GradientStep(0.05), shared=True),
    "batch quantile": lambda: fn.BatchQuantile(0.25),
    "margin": lambda: fn.RelativeToPositive(relative_margin=0.2),
    "oracle": lambda: fn.Oracle(torch.arange(ROWS) % CLASSES),
    "all of": lambda: fn.AllOf([fn.GlobalThreshold(0.5), fn.SupportSet(share=0.5)]),
    "everything": lambda: fn.FixedThreshold(-1.0),
}
OBJECTIVES = {
    "InfoNCE": fn.InfoNCE,
    "OwnDenominators": fn.OwnDenominators,
    "Decoupled": fn.Decoupled,
    "SogCLR": fn.GlobalContrastive,
    "Debiased": lambda: fn.Debiased(0.1),
    "HardNegatives": lambda: fn.HardNegatives(1.0, 0.1),
}
TEMPERATURES = {"fixed": lambda: 0.2, "learned": fn.LearnedTemperature, "individual": fn.IndividualTemperature}
FACTS = {"rows": ROWS, "negatives": 100, "classes": CLASSES}


@pytest.fixture(scope="module", params=METHODS)
def steps(request):
    """A method, and the embeddings of its next two steps."""
    torch.manual_seed(0)
    method = METHODS[request.param](fn.Encoder("resnet10t", image_size=8, arguments={"channels": [8, 8, 8, 8]}))
    draw = torch.Generator().manual_seed(1)

    def views(first):
        def made(number):
            return torch.randint(0, 256, (IMAGES, number, 3, 8, 8), generator=draw, dtype=torch.uint8)

        streams = {name: made(number) for name, number in method.streams.items()}
        return fn.Batch(torch.arange(first, first + IMAGES), streams)

    with torch.no_grad():  # the bank holds images of the next steps, too
        for first in (0, 8, 16):
            method.after_step(method.encode(views(first)), Clock(0, 5, 4))
        return method, [method.encode(views(first)) for first in (16, 20)]


def leaves(embeddings):
    """The embeddings as a step sees them: the queries ask for a gradient."""
    queries = embeddings.rows["image"].clone().requires_grad_()
    return fn.Embeddings(embeddings.index, {**embeddings.rows, "image": queries})


@pytest.mark.parametrize("strategy", fn.STRATEGIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_combination_makes_a_finite_step(steps, objective, strategy):
    method, batches = steps
    still = torch.nn.functional.normalize(torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    for detector, temperature in itertools.product(DETECTORS, TEMPERATURES):
        criterion = fn.Criterion(
            DETECTORS[detector](), fn.STRATEGIES[strategy], OBJECTIVES[objective](), TEMPERATURES[temperature]()
        )
        criterion.prepare(fn.Facts(**FACTS, contrasts=method.contrast_names))
        criterion.detector.start_epoch(lambda *_: still, Clock(0, 5, 4))
        for step, batch in enumerate(batches):
            embeddings = leaves(batch)
            loss, judged = criterion(method.contrasts(embeddings), Clock(step, 5, 4))
            loss.backward()
            criterion.temperature.after_backward(Clock(step, 5, 4))
            name = f"{detector}, {temperature}, step {step}"
            assert loss.isfinite() and embeddings.rows["image"].grad.isfinite().all(), name
            flagged = sum(int(stats.flagged.sum()) for _, _, stats in judged)
            if detector not in ("everything", "margin"):  # which may leave nothing to push or to pull
                assert embeddings.rows["image"].grad.abs().sum() > 0, name
            assert (flagged > 0) == (detector != "none") or detector in ("margin", "all of", "FNC, both"), name
