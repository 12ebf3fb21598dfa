"""What a detector holds of each image, at the recorded epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from falseneg.foreign.archives import load_arrays
from falseneg.report.arrays import check
from falseneg.report.read import Files, RunRecord
from falseneg.train import names


def _read(path: Path, _: RunRecord) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    check(all(values.dtype.kind in "iuf" for values in arrays.values()))
    return arrays


PER_SAMPLE = Files(f"{names.PER_SAMPLE}/epoch-*.npz", _read)


def samples_of(run: RunRecord) -> dict[int, dict[str, np.ndarray]]:
    """The arrays of `PER_SAMPLE` by epoch and name."""
    by_epoch = {name[len("epoch-") : -len(".npz")]: arrays for name, arrays in run.get_all(PER_SAMPLE).items()}
    return {int(epoch): arrays for epoch, arrays in by_epoch.items() if epoch.isdecimal()}
