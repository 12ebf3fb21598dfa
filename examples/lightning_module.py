"""A Lightning module for images and captions; what it has learned for each pair is in its checkpoints."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import falseneg as fn

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


# --8<-- [start:module]
class Pairs(lightning.LightningModule):
    def __init__(self, pairs: int, words: int) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
        self.text_tower = nn.EmbeddingBag(words, 32)
        self.log_scale = nn.Parameter(torch.tensor(2.66))
        # Before:  self.criterion = ClipLoss()
        self.criterion = fn.PairLoss(fn.GlobalThreshold(alpha=0.1, start="1 epoch"), pairs=pairs)

    def training_step(self, batch: list[torch.Tensor], step: int) -> torch.Tensor:
        rows, images, tokens = batch  # new: the rows of the pairs
        steps = self.trainer.num_training_batches
        clock = fn.Clock(self.trainer.current_epoch * steps + step, steps, self.trainer.max_epochs)
        features = self.image_tower(images), self.text_tower(tokens)
        loss = self.criterion(*features, self.log_scale.exp(), sample=rows, clock=clock)
        self.log("loss", loss)
        self.log("flagged", self.criterion.flagged["image->text"].share)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


# --8<-- [end:module]


lightning.seed_everything(0, verbose=False)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)
# A caption is the digit's word and one of 50 writers: in every tenth negative the word is the anchor's own.
tokens = torch.stack([torch.tensor(digits.target), 10 + torch.arange(len(images)) % 50], dim=1)
data = TensorDataset(torch.arange(len(images)), images, tokens)
module = Pairs(len(images), words=60)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", devices=1, **quiet)
trainer.fit(module, DataLoader(data, batch_size=128, shuffle=True, drop_last=True))
print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})

with torch.no_grad():
    words = nn.functional.normalize(module.text_tower.weight[:10], dim=1)
    best = (module.image_tower(images) @ words.T).argmax(dim=1)
right = float((best == torch.tensor(digits.target)).float().mean())
print(f"the word nearest to an image is its own for {right:.0%}, as {WORDS[int(best[0])]!r} for the first")

trainer.save_checkpoint("pairs.ckpt")
again = Pairs.load_from_checkpoint("pairs.ckpt", pairs=len(images), words=60)
thresholds = [each.criterion.criterion.detector.per_sample()["threshold image->text"] for each in (module, again)]
print("thresholds are in the checkpoint:", torch.equal(*thresholds))
