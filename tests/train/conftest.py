import pytest
import torch
from train.parts import tiny_run

from falseneg.train import fit


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    torch.manual_seed(0)
    figures = fit(tiny_run(evaluate_every="1 epoch", keep_every="2 epochs"), folder, configuration="epochs: 3\n")
    return folder, figures
