import multiprocessing

import pytest
import torch
from train.many_processes import free_port, train
from train.parts import tiny_run

from falseneg.train import fit

PRELOAD = ["falseneg.train.pretrain", "timm", "lightning_fabric", "sklearn.linear_model", "torchvision.transforms.v2"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    torch.manual_seed(0)
    figures = fit(tiny_run(evaluate_every="1 epoch", keep_every="2 epochs"), folder, configuration="epochs: 3\n")
    return folder, figures


@pytest.fixture(scope="module")
def context():
    """Starts processes that have imported what a training needs."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("the system cannot fork processes")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@pytest.fixture
def machines(context, tmp_path):
    """Starts a process on each of so many machines, which find each other by their environment."""

    def begin(folder, world=1, different=None, **options):
        port = {} if world == 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        processes = []
        for rank in range(world):
            variables = port | ({} if world == 1 else {"NODE_RANK": str(rank)})
            own = {"folder": folder, "nodes": world, **options} | (different(rank) if different else {})
            own |= {"variables": variables, "log": tmp_path / f"log{rank}"}
            processes.append(context.Process(target=train, kwargs=own))
            processes[-1].start()
        return processes

    return begin


@pytest.fixture
def launch(machines, tmp_path):
    """Trains to the end on so many machines; what each of them said."""

    def launch(folder, world=1, codes=(0,), **options):
        processes = machines(folder, world, **options)
        for each in processes:
            each.join(200)
        outs = [(tmp_path / f"log{rank}").read_text() for rank in range(world)]
        expected = list(codes) if len(codes) == world else list(codes) * world
        assert [each.exitcode for each in processes] == expected, outs
        return outs

    return launch
