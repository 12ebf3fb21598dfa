"""Two gloo processes against one: losses and parameter gradients must be equal, on every rank, with uneven counts."""

import pytest
import torch
from distributed import two_ranks
from distributed.processes import found_by_two
from distributed.two_ranks import (
    DETECTORS,
    FORMS,
    GLOBAL,
    IMAGES,
    OBJECTIVES,
    SHARES,
    STRATEGIES,
    data,
    global_steps,
    second_derivative,
    simclr_step,
    step,
    table_after_writes,
)

import falseneg as fn


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return found_by_two(two_ranks, tmp_path_factory.mktemp("ranks"))


CASES = [(s, d, a, "InfoNCE") for s in SHARES for d in DETECTORS for a in STRATEGIES]
CASES += [(s, "support top-k", "attract", o) for s in SHARES for o in OBJECTIVES if o != "InfoNCE"]


@pytest.mark.parametrize("case", CASES, ids=" / ".join)
def test_loss_and_parameter_gradients(ranks, case):
    """Traps 9 and 10."""
    expected = step(slice(0, IMAGES), *case[1:])
    for rank in range(2):
        for got, wanted in zip(ranks[rank][case], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", [(s, f) for s in SHARES for f in FORMS], ids=" / ".join)
def test_support_sets_among_the_positives(ranks, case):
    expected = simclr_step(slice(0, IMAGES), case[1])
    for rank in range(2):
        for got, wanted in zip(ranks[rank][case], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shares", SHARES)
def test_the_tables_of_all_ranks_are_that_of_one(ranks, shares):
    alone = table_after_writes(slice(0, IMAGES))
    for rank in range(2):
        torch.testing.assert_close(ranks[rank][shares, "table"], alone)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("form", GLOBAL)
def test_state_of_each_sample_is_that_of_one_process(ranks, shares, form):
    """No rank's updates are lost, and what is flagged is what is measured (GloFND's released code fails at both)."""
    alone = global_steps(slice(0, IMAGES), GLOBAL[form])
    assert alone[-1].sum() > 0 and alone[2][2] > 0  # temperatures were visited, pairs were flagged
    for rank in range(2):
        for got, wanted in zip(ranks[rank][shares, "global", form], alone, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_reduce_scatter_sends_each_rank_the_sum_of_its_own_rows(ranks):
    """What NCCL does in the backward pass, by gloo."""
    for rank, own in ((0, slice(0, 3)), (1, slice(3, 8))):
        (found,) = ranks[rank]["reduce-scatter"]
        assert torch.equal(found, (torch.arange(16.0, dtype=torch.float64).view(8, 2) * 3)[own])


def test_gather_brings_rows_in_order_and_sums_the_gradients_of_all_ranks(ranks):
    for rank, own in ((0, slice(0, 3)), (1, slice(3, 8))):
        everyone, gradient = ranks[rank]["gather"]
        assert everyone.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
        assert gradient.tolist() == (torch.arange(8.0) * 3)[own].tolist()


def test_second_derivatives_cross_the_ranks(ranks):
    alone = second_derivative(slice(0, IMAGES))
    for rank, own in ((0, slice(0, 3)), (1, slice(3, IMAGES))):
        # A rank's loss is scaled by the number of ranks, for gradients that are averaged; its square by that squared.
        torch.testing.assert_close(ranks[rank]["second"][0] / 4, alone[own], rtol=1e-10, atol=1e-13)


def test_criterion_without_sample_numbers(ranks):
    main, _, _ = data()
    expected = fn.ContrastiveLoss()(main[:, 0], main[:, 1])
    for rank in range(2):
        torch.testing.assert_close(ranks[rank]["criterion"][0] / 2, expected, rtol=1e-12, atol=0)
