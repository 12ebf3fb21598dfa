"""Runs that take no time: what `run_tasks` starts in the tests."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def train(configuration, folder, resume):
    """Two epochs; what happens besides is what the configuration says."""
    print(f"resume={resume}")
    first = 2 if resume else 1
    with open(folder / "metrics.jsonl", "a") as metrics:
        for epoch in range(first, 3):
            line = {"kind": "epoch", "epoch": epoch, "seconds": 0.5, "knn": 0.4 + epoch / 10, "precision": 0.3}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.pt").touch()
            misbehave(configuration["then"], folder)
        metrics.write(json.dumps({"kind": "final", "knn": 0.6, "seconds": 1.0, "seconds_per_epoch": 0.5}) + "\n")
    (folder / "encoder.safetensors").touch()


def misbehave(then, folder):
    if then == "fail":
        raise RuntimeError("it broke\nin two lines")
    if then == "refuse":
        from falseneg.errors import UserError

        raise UserError("no such\nthing")
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "stop":
        sys.exit(143)
    if then == "leave":
        os._exit(3)
    if then == "wait" and not (folder / "stopped").exists():
        # As training does: a signal is granted after the step, the run is saved, and the process ends with 143.
        wanted = []
        signal.signal(signal.SIGTERM, lambda *_: wanted.append(True))
        while not wanted:
            time.sleep(0.02)
        Path(folder / "stopped").touch()
        sys.exit(143)
