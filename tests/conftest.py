import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

# Before torch is imported anywhere: the tests share few cores, and small tensors gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that runs the tests in the background has them ignore interrupts, and what they start inherits it.
with contextlib.suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)
