"""Small batches: SogCLR with GloFND in a loop of your own. Both remember every image from step to step."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.transforms import v2

import falseneg as fn

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]

network = nn.Sequential(
    *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64))
)
optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
crop = v2.RandomResizedCrop(8, scale=(0.4, 1.0), antialias=True)
EPOCHS, BATCH = 3, 32
STEPS = len(images) // BATCH


def view(batch: torch.Tensor) -> torch.Tensor:
    return torch.stack([crop(image) for image in batch])


detector = fn.GlobalThreshold(start="1 epoch")  # alpha: one over the number of classes
criterion = fn.ContrastiveLoss(detector, fn.ELIMINATE, fn.GlobalContrastive(), 0.2, images=len(images), classes=10)

for step in range(EPOCHS * STEPS):
    sample = torch.randperm(len(images))[:BATCH]  # which images: their state is looked up by it
    batch = images[sample]
    clock = fn.Clock(step, STEPS, EPOCHS)  # for what starts later, or changes with time
    loss = criterion(network(view(batch)), network(view(batch)), sample=sample, clock=clock)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if (step + 1) % STEPS == 0:
        thresholds = detector.per_sample()["threshold"]
        known = thresholds[thresholds.isfinite()]
        learned = f"from {known.min():.2f} to {known.max():.2f}" if len(known) else "none yet"
        print(f"epoch {(step + 1) // STEPS}: loss {loss.item():.3f}, thresholds {learned}")

# torch.save(criterion.state_dict(), ...) takes thresholds and running means along.
