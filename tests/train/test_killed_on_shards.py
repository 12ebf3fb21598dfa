"""Two towers on webdataset's shards, killed at random steps and resumed: each pair is seen exactly once an epoch."""

import random
import time
from pathlib import Path

import captioned
import pytest
import torch
from train.many_processes import rows_of, shard_run, wait_for_lines
from train.parts import assert_same_weights

from falseneg.data import Shards
from falseneg.train import fit
from falseneg.train.checkpoint import load_checkpoint

PAIRS, EPOCHS, STEPS = 96, 3, 5
"""Batches of 20, the last of them of 16."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return captioned.write_shards(tmp_path_factory.mktemp("shards") / "train", images=PAIRS)


@pytest.mark.parametrize(
    ("seed", "workers", "kills"),
    [(0, 0, 3), *(pytest.param(seed, seed % 3, 8, marks=pytest.mark.slow) for seed in range(1, 7))],
)
def test_each_pair_is_seen_once_an_epoch(machines, shards, tmp_path, seed, workers, kills):
    options = {"shards": shards, "batch_size": 20, "keep_last": True, "epochs": EPOCHS, "checkpoint_every": "2 steps"}
    fit(shard_run(**options, workers=workers), tmp_path / "alone")
    names = [Shards(shards, cache=str(tmp_path)).describe(row) for row in range(PAIRS)]
    indexes = list(Path(shards).parent.rglob("*.npz"))
    assert indexes
    draw, folder, noted, killed = random.Random(seed), tmp_path / "run", [], 0
    for attempt in range(kills + 1):
        noted.append([tmp_path / f"rows{attempt}"])
        resume = (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()
        (process,) = machines(folder, build=shard_run, rows=noted[-1][0], resume=resume, workers=workers, **options)
        if attempt < kills:
            wait_for_lines(noted[-1][0], draw.randint(1, 6), [process])
            time.sleep(draw.uniform(0, 0.05))
            killed += process.exitcode is None
            process.kill()
            for index in indexes:
                index.unlink(missing_ok=True)  # whoever resumes has to make it again
        process.join(200)
    assert process.exitcode == 0 and killed
    steps = rows_of(noted)
    assert sorted(steps) == list(range(EPOCHS * STEPS))
    for epoch in range(EPOCHS):
        seen = [row for step in range(STEPS) for row in steps[epoch * STEPS + step]]
        assert sorted(seen) == list(range(PAIRS)), epoch
    assert steps[0] != steps[STEPS]
    assert names == [Shards(shards, cache=str(tmp_path)).describe(row) for row in range(PAIRS)]
    assert_same_weights(tmp_path / "alone", folder)
    one, other = (
        load_checkpoint(each / "checkpoints" / "last.pt")["criterion"] for each in (tmp_path / "alone", folder)
    )
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
