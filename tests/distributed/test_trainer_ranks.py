"""`FalseNegativeRankingLoss` in a trainer of two processes."""

import subprocess
import sys

import pytest
import torch
from distributed import trainer_ranks


@pytest.mark.slow
def test_two_processes_train_as_those_of_sentence_transformers(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", trainer_ranks.__file__]
    subprocess.run([sys.executable, *command, str(tmp_path)], check=True, timeout=280, capture_output=True)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("ours", "cached"):
        for rank in (first, second):
            torch.testing.assert_close(rank[name]["weights"], first["theirs"]["weights"], rtol=0, atol=1e-6)
    for rank in (first, second):
        learned = rank["glofnd"]
        flagged, negatives, *_ = learned["skipped"].tolist()
        assert 0 < flagged < negatives == 12 * 15 and 0 < int(learned["pairs"]) <= flagged
        assert (learned["weights"] - rank["theirs"]["weights"]).abs().max() > 1e-4
    thresholds = [[value for name, value in rank["glofnd"].items() if "threshold" in name] for rank in (first, second)]
    assert len(thresholds[0]) == 1 and torch.equal(thresholds[0][0], thresholds[1][0])
