"""Names of emoji as queries, their keywords as passages: which detector helps retrieval, over some seeds.

    python benchmarks/emoji_text.py FOLDER [--seeds 5]

FOLDER holds emoji-train-*.tar and emoji-test-*.tar: a JSON with name, skin_tones, keywords and base_id for each emoji. The
skin tones of one emoji share its base_id; they answer each other's queries, and are false negatives of one another. The
passage of a step is a random half of the keywords, so that false negatives are seldom equal texts.
"""

import argparse
import json
import random
import tarfile
import time
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

import falseneg as fn

BUCKETS, DIM, BATCH, EPOCHS, RATE, SCALE = 2**12, 128, 256, 12, 2e-3, 20.0
ALPHA = 0.0015
"""The share of negatives that are false, which GloFND is told."""


def emoji(folder, split):
    """The rows of a split."""
    for path in sorted(folder.glob(f"emoji-{split}-*.tar")):
        with tarfile.open(path) as tar:
            found = (json.loads(tar.extractfile(each).read()) for each in tar if each.name.endswith(".json"))
            yield from (row for row in found if row["keywords"])  # some have none


def name_of(row):
    return " ".join([row["name"], *row["skin_tones"]])


@cache
def tokens(word):
    """A word and its three-letter parts, hashed."""
    parts = [word, *(f"#{word}#"[at : at + 3] for at in range(len(word)))]
    return [zlib.crc32(part.encode()) % BUCKETS for part in parts]


class Tower(nn.Module):
    """One tower for both: the mean of embeddings of words and their parts, and two layers."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(BUCKETS, DIM)
        self.layers = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))

    def forward(self, texts):
        found = [[token for word in text.lower().split() for token in tokens(word)] for text in texts]
        starts = torch.tensor([0, *(len(each) for each in found[:-1])]).cumsum(0)
        bag = self.bag(torch.tensor([token for each in found for token in each]), starts)
        return bag + self.layers(bag)


def variants(labels):
    pairs = len(labels)
    return {
        "none": lambda: fn.PairLoss(),
        "GloFND, alpha .0015": lambda: fn.PairLoss(fn.GlobalThreshold(ALPHA, start="20%"), pairs=pairs),
        "relative margin .05": lambda: fn.PairLoss(fn.RelativeToPositive(relative_margin=0.05)),
        "above the positive by .1": lambda: fn.PairLoss(fn.RelativeToPositive(absolute_margin=-0.1)),
        "queries alike, cosine > .9": lambda: fn.PairLoss(fn.FixedThreshold(0.9, space="image")),
        "passages alike, cosine > .8": lambda: fn.PairLoss(fn.FixedThreshold(0.8, space="text")),
        "oracle": lambda: fn.PairLoss(fn.Oracle(labels), pairs=pairs),
        "oracle, attract": lambda: fn.PairLoss(fn.Oracle(labels), "attract", pairs=pairs),
    }


def counts(criterion, label):
    """Right flags, flags and false negatives, over both directions."""
    right = flags = 0
    for flagged in criterion.flagged.values():
        pairs = flagged.pairs()
        right += int((label[pairs.anchor] == label[pairs.candidate]).sum())
        flags += len(pairs.anchor)
    return torch.tensor([right, flags, 2 * (int((label[:, None] == label).sum()) - len(label))])


def train(rows, labels, make, seed):
    """The tower, and detection in the last epoch."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    tower, criterion = Tower(), make()
    optimiser = torch.optim.AdamW(tower.parameters(), lr=RATE)
    steps = len(rows) // BATCH
    for epoch in range(EPOCHS):
        order, found = torch.randperm(len(rows)), torch.zeros(3, dtype=torch.int64)
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            chosen = [rows[row] for row in batch]
            halves = [draw.sample(row["keywords"], (len(row["keywords"]) + 1) // 2) for row in chosen]
            queries, passages = tower([name_of(row) for row in chosen]), tower([" ".join(half) for half in halves])
            clock = fn.Clock(epoch * steps + step, steps, EPOCHS)
            loss = criterion(queries, passages, SCALE, sample=batch, clock=clock)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if epoch == EPOCHS - 1:
                found += counts(criterion, labels[batch])
    return tower, found


@torch.no_grad()
def recall(tower, rows):
    """At 1, 5 and 10: the emoji's own keywords, among those of all base emoji, for each name with its tone."""
    of_base = {row["base_id"]: " ".join(row["keywords"]) for row in rows}
    passages = normalize(tower(list(of_base.values())), dim=1)
    own = torch.tensor([list(of_base).index(row["base_id"]) for row in rows])
    scores = normalize(tower([name_of(row) for row in rows]), dim=1) @ passages.T
    place = (scores > scores.gather(1, own[:, None])).sum(dim=1)
    return [100 * float((place < k).float().mean()) for k in (1, 5, 10)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    rows, test = list(emoji(given.folder, "train")), list(emoji(given.folder, "test"))
    labels = torch.tensor([row["base_id"] for row in rows])
    print("| detector | recall@1 | @5 | @10 | precision | recall of detection | seconds a run |\n" + "| --- " * 7 + "|")
    for name, make in variants(labels).items():
        runs, total, start = [], torch.zeros(3), time.time()
        for seed in range(given.seeds):
            tower, found = train(rows, labels, make, seed)
            runs.append(recall(tower, test))
            total += found
        mean, spread = torch.tensor(runs).mean(0), torch.tensor(runs).std(0)
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
        right, flags, false = total.tolist()
        cells += [f"{100 * right / flags:.0f}%" if flags else "–", f"{100 * right / false:.0f}%"]
        print("|", " | ".join([name, *cells, f"{(time.time() - start) / given.seeds:.0f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
