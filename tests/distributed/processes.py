"""What several gloo processes of a program found."""

import subprocess
import sys

import torch


def found_by_two(program, folder):
    """What each of two ranks has saved, of a module that is called as RANK FOLDER and saves rank0.pt and rank1.pt there."""
    processes = [subprocess.Popen([sys.executable, program.__file__, str(rank), folder]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
