"""Two gloo processes that do not compare with each other: the mean over their anchors, each process as if alone."""

import pytest
import torch
from distributed import apart_ranks
from distributed.apart_ranks import CASES, ROWS_OF_SECOND_STEP, SHARES, found
from distributed.processes import found_by_two

import falseneg as fn


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return found_by_two(apart_ranks, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_what_is_kept_of_each_image(ranks, case):
    alone = [found(case, share) for share in SHARES]
    expected = (3 * alone[0][0] + 5 * alone[1][0]) / 8
    for rank in ranks:
        flat, kept = rank[case, False]
        torch.testing.assert_close(flat, expected, rtol=1e-10, atol=1e-13)
        assert not torch.allclose(rank[case, True][0], expected, rtol=1e-3)
        assert ("GloFND" in case) == bool(kept)
        for name, value in kept.items():
            for share, (_, own) in zip(SHARES, alone, strict=True):
                rows = ROWS_OF_SECOND_STEP[share]
                torch.testing.assert_close(value[rows], own[name][rows], equal_nan=True)


def test_an_image_alone_on_its_process_has_nothing_to_compare_with(monkeypatch):
    monkeypatch.setattr("falseneg.call_checks.world_size", lambda: 2)
    with pytest.raises(fn.UserError, match="a single image"):
        fn.ContrastiveLoss(gather_across_devices=False)(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(fn.UserError, match="a single pair"):
        fn.PairLoss(gather_across_devices=False)(torch.ones(1, 3), torch.ones(1, 3), 1.0)
