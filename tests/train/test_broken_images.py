"""Images that can be read before training, and then no more."""

import pytest
import torch
from PIL import Image
from train.parts import assert_same_weights, digits, tiny_encoder, tiny_run, untimed

import falseneg as fn
from falseneg.data import Folder
from falseneg.train import fit


@pytest.fixture
def folder(tmp_path):
    """96 digits as files."""
    images = digits()
    for row in range(len(images)):
        path = tmp_path / "digits" / f"{images.labels[row]}" / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.image(row).permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "digits"


class BreakAt(fn.InfoNCE):
    """Does something to the files in the middle of a step."""

    def __init__(self, step, harm=lambda: None):
        super().__init__()
        self._step, self._harm = step, harm

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step == self._step:
            self._harm()
        return super().forward(contrast, stats, tau, strategy, clock)


@pytest.mark.parametrize(
    ("workers", "content", "reason"),
    [(0, None, "cannot be opened"), (2, b"\x89PNG, cut short", "cannot be read")],
)
def test_the_run_is_saved_and_goes_on_once_the_image_is_restored(tmp_path, folder, workers, content, reason):
    def run(harm=lambda: None):
        torch.manual_seed(0)
        method = fn.SimCLR(tiny_encoder(0), support_views=1)
        options = {
            "workers": workers,
            "checkpoint_every": None,
            "skip_unreadable": workers == 0,
            "test": None,
            "holdout": 0.0,
        }
        return tiny_run(data=Folder(str(folder)), method=method, objective=BreakAt(4, harm), **options)

    fit(run(), tmp_path / "whole")
    victim = next(path for path in sorted(folder.rglob("*.png"))[1::7])
    before = victim.read_bytes()

    def harm():
        victim.unlink() if content is None else victim.write_bytes(content)

    with pytest.raises(
        fn.UserError, match=rf"{victim.name}.* {reason}.*; the run is saved after step [5-8] of 9, and --res"
    ):
        fit(run(harm), tmp_path / "parts")
    assert torch.load(tmp_path / "parts" / "checkpoints" / "last.pt", weights_only=True)["step"] >= 5
    victim.write_bytes(before)
    fit(run(), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
