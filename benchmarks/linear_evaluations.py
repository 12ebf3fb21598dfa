"""How long do linear classifiers on cached features take?

    python benchmarks/linear_evaluations.py [--threads 2] --out FILE.md

The first part is `falseneg evaluate --protocol linear --protocol.cached true` from the point on where the features of 50,000
training and 10,000 test images are extracted: 90 epochs of SGD. The second is the transfer protocol's: logistic regression
by L-BFGS at its 45 penalties with warm starts, timed against scikit-learn's on the same features, in turns; scikit-learn's
starts each search from the last one's end, too. Wall time says something on an idle machine only; CPU time always.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from falseneg.data.image_set import ImageSet
from falseneg.evaluation import LinearEvaluation, Task
from falseneg.evaluation.logistic import logistic_path
from falseneg.evaluation.metrics import classification_loss, top_k
from falseneg.evaluation.pieces import Pieces
from falseneg.evaluation.transfer import PENALTIES
from falseneg.files import write_bytes

DIM = 512
TRAIN, TEST, CLASSES = 50_000, 10_000, (10, 100)
PATH = 3_000, 20
Solution = tuple[float, Tensor, Tensor]


def made_features(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rows as an encoder's: not negative, correlated, of very unequal spread, and of classes that overlap."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=draw)
    spread = torch.arange(1, DIM + 1).float().rsqrt()
    mixing = torch.linalg.qr(torch.randn(DIM, DIM, generator=draw))[0] * spread
    inner = 0.25 * torch.randn(classes, DIM, generator=draw)[labels] + torch.randn(rows, DIM, generator=draw)
    return (inner @ mixing.T + 0.3).relu(), labels


class Extracted(ImageSet):
    """Images whose features are extracted already."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Tensor:
        raise AssertionError("the features are cached")


def timed(work: Callable[[], object]) -> tuple[float, float, object]:
    """Wall and CPU seconds, and what came out."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - wall, time.process_time() - cpu, made


def linear_lines() -> Iterator[str]:
    """The protocol on features that are there."""
    for classes in CLASSES:
        features, labels = made_features(TRAIN + TEST, classes)
        with tempfile.TemporaryDirectory() as folder:
            pieces = Pieces(Path(folder) / "parts")
            pieces.keep("features-train", {"features": features[:TRAIN].clone()})
            pieces.keep("features-test", {"features": features[TRAIN:].clone()})
            task = Task(nn.Identity(), 1, Extracted(labels[:TRAIN]), Extracted(labels[TRAIN:]), pieces=pieces)
            wall, cpu, figures = timed(lambda task=task: LinearEvaluation(cached=True).run(task))
        yield f"| {TRAIN:,} × {DIM}, {classes} classes, 90 epochs | {wall:.1f} | {cpu:.1f} | {figures[0].value:.1%} |"


def ours(features: Tensor, labels: Tensor) -> list[Solution]:
    return list(logistic_path(features, labels, PATH[1], PENALTIES))


def theirs(features: Tensor, labels: Tensor, tolerance: float) -> list[Solution]:
    judge = LogisticRegression(tol=tolerance, warm_start=True, max_iter=10_000)
    found = []
    for penalty in sorted(PENALTIES, reverse=True):
        judge.set_params(C=1 / penalty)
        judge.fit(features.numpy(), labels.numpy())
        found.append((penalty, torch.tensor(judge.coef_), torch.tensor(judge.intercept_)))
    return found


def objective(features: Tensor, labels: Tensor, solution: Solution) -> float:
    """What both minimise, in nats an image, in float64."""
    penalty, weight, bias = solution
    scores = features.double() @ weight.double().T + bias.double()
    return float(classification_loss(scores, labels) + penalty / 2 * weight.double().square().sum() / len(labels))


def path_lines(rounds: int) -> Iterator[str]:
    """Both on the same features, in turns."""
    rows, classes = PATH
    features, labels = made_features(2 * rows, classes)
    learnt = features[:rows], labels[:rows]
    solvers: dict[str, Callable[[Tensor, Tensor], list[Solution]]] = {
        "falseneg": ours,
        "scikit-learn, its own tolerance 1e-4": lambda x, y: theirs(x, y, 1e-4),
        "scikit-learn, tolerance 1e-6": lambda x, y: theirs(x, y, 1e-6),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in solvers}
    found: dict[str, list[Solution]] = {}
    for _ in range(rounds):
        for name, solve in solvers.items():
            wall, cpu, made = timed(lambda solve=solve: solve(*learnt))
            times[name].append((wall, cpu))
            found[name] = made
            print(name, f"{wall:.1f} s", flush=True)
    reached = {name: [objective(*learnt, each) for each in listed] for name, listed in found.items()}
    for name, both in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*both, strict=True))
        worst = max(here - min(each) for here, *each in zip(reached[name], *reached.values(), strict=True))
        right = [top_k(features[rows:] @ w.float().T + b.float(), labels[rows:], 1) for _, w, b in found[name]]
        yield f"| {name} | {wall:.1f} | {cpu:.1f} | {worst:.1e} | {max(right):.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("error", category=ConvergenceWarning)
    before = os.getloadavg()[0]
    with threadpool_limits(options.threads):
        linear = list(linear_lines())
        path = list(path_lines(options.rounds))
    head = (
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads of {os.cpu_count()} cores, load average "
        f"{before:.1f} before, {os.getloadavg()[0]:.1f} after; torch {torch.__version__}, scikit-learn {sklearn.__version__}; "
        f"made features. `python benchmarks/linear_evaluations.py --threads {options.threads} --rounds {options.rounds}`"
    )
    text = [
        "# Linear classifiers on cached features",
        "",
        head,
        "",
        "| the protocol `linear`, cached | wall seconds | CPU seconds | top-1 |",
        "| --- | --- | --- | --- |",
        *linear,
        "",
        f"L-BFGS at 45 penalties with warm starts, {PATH[0]:,} × {DIM}, {PATH[1]} classes; medians of {options.rounds}, in turns.",
        "",
        "| | wall seconds | CPU seconds | worst gap to the lower minimum, nats an image | best top-1 on other rows |",
        "| --- | --- | --- | --- | --- |",
        *path,
    ]
    write_bytes(options.out, ("\n".join(text) + "\n").encode())
    print("\n".join(text))


if __name__ == "__main__":
    main()
