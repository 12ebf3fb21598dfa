"""How many processes train together, as options and environment say, and what they must agree on."""

import os

import pytest

import falseneg as fn
from falseneg.train.processes import Processes, processes_of

ELASTIC = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "3"}
SLURM = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"}
BY_HAND = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "1"}
CHILD = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
STALE = ("WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in STALE:
            monkeypatch.delenv(name)

    def put(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "expected"),
    [
        ({}, None, None, (1, 1)),
        ({}, 4, None, (4, 1)),
        (ELASTIC, None, None, (2, 2)),
        (ELASTIC, 2, 2, (2, 2)),
        (SLURM, None, None, (2, 3)),
        (SLURM, None, 3, (2, 3)),
        ({**SLURM, **ELASTIC}, None, None, (2, 2)),  # torchrun inside of SLURM
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, 4, None, (4, 1)),  # a single task starts the others
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, None, None, (1, 1)),  # a shell in an allocation
        (BY_HAND, None, 2, (1, 2)),
        (BY_HAND, 8, 4, (8, 4)),
        (CHILD, 2, None, (2, 1)),  # started by the first process of the machine
        ({"WORLD_SIZE": "1"}, 2, None, (2, 1)),
    ],
)
def test_who_says_how_many(environment, variables, devices, nodes, expected):
    environment(variables)
    found = processes_of(devices, nodes)
    assert found == Processes(*expected) and found.number == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "words"),
    [
        (ELASTIC, 4, None, "devices is 4, but torchrun started 2 processes on each of 2 machines"),
        (ELASTIC, None, 1, "nodes is 1, but torchrun"),
        ({**ELASTIC, "WORLD_SIZE": "5"}, None, None, "same --nproc-per-node"),
        ({**ELASTIC, "WORLD_SIZE": "many"}, None, None, "WORLD_SIZE of the environment is 'many'"),
        (SLURM, 3, None, "devices is 3, but SLURM started 2 processes on each of 3"),
        ({**SLURM, "SLURM_NTASKS": "5"}, None, None, "--ntasks-per-node"),
        ({name: SLURM[name] for name in ("SLURM_NTASKS", "SLURM_STEP_ID")}, None, None, "--ntasks-per-node"),
        ({name: SLURM[name] for name in ("SLURM_NTASKS", "SLURM_NNODES")}, None, None, "put srun before it"),
        ({"NODE_RANK": "1"}, None, None, "NODE_RANK is 1, .*nodes is 1"),
        (BY_HAND, 1, 1, "NODE_RANK is 1"),
        ({}, None, 2, "MASTER_ADDR, MASTER_PORT, NODE_RANK are not set"),
        ({**CHILD, "MASTER_ADDR": "a"}, 1, 2, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, None, None, r"2 processes train together \(WORLD_SIZE\)"),
        ({**CHILD, "WORLD_SIZE": "4"}, 2, None, "4 processes train together"),
    ],
)
def test_contradictions_are_one_sentence(environment, variables, devices, nodes, words):
    environment(variables)
    with pytest.raises(fn.UserError, match=words) as found:
        processes_of(devices, nodes)
    assert "\n" not in str(found.value)
