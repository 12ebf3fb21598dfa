"""Replace one line of a training loop that you already have: here, a plain SimCLR loop on the digits of scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.transforms import v2

import falseneg as fn

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target)

network = nn.Sequential(
    *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64))
)
optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
crop = v2.RandomResizedCrop(8, scale=(0.4, 1.0), antialias=True)


def view(batch: torch.Tensor) -> torch.Tensor:
    return torch.stack([crop(image) for image in batch])


# Before:  criterion = NTXentLoss(temperature=0.2)
criterion = fn.ContrastiveLoss(fn.SupportSet(top_k=25), fn.ELIMINATE, temperature=0.2)

for step in range(60):
    sample = torch.randperm(len(images))[:128]
    batch = images[sample]
    support = [network(view(batch)).detach() for _ in range(4)]
    # Before:  loss = criterion(network(view(batch)), network(view(batch)))
    loss = criterion(network(view(batch)), network(view(batch)), sample=sample, support=support)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {float(loss.detach()):.3f}")
