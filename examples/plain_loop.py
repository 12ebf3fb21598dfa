"""The same parts in a plain PyTorch loop: SimCLR with FNC on the digits of scikit-learn, measured at the end."""

import torch

import falseneg as fn
from falseneg.data import Augmentation, Digits, EpochSampler, ViewSet, view_loader
from falseneg.evaluation import DetectionCounts, evaluate

torch.manual_seed(0)
EPOCHS = 2
images = Digits("train")
encoder = fn.Encoder("resnet10t", image_size=8, arguments={"channels": [16, 32, 64, 64]})
method = fn.SimCLR(encoder, head_dim=64, support_views=4)
criterion = fn.Criterion(fn.SupportSet(share=0.1), fn.ELIMINATE, temperature=0.2)
optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)

augmentation = Augmentation(8, crop_scale=(0.3, 1.0), flip=0.0, saturation=0.0, hue=0.0, grayscale=0.0)
views = ViewSet(images, {name: [augmentation] * number for name, number in method.streams.items()})
batches = EpochSampler(len(images), batch_size=128)

for epoch in range(EPOCHS):
    batches.set_epoch(epoch)
    found = DetectionCounts()
    for step, batch in enumerate(view_loader(views, batches), start=epoch * len(batches)):
        clock = fn.Clock(step, len(batches), EPOCHS)
        embeddings = method.encode(batch)
        loss, judged = criterion(method.contrasts(embeddings), clock)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(embeddings, clock)
        for contrast, rule, _ in judged:  # labels measure; they never train
            found.add(fn.confusion(contrast, rule, images.labels))
    print(f"epoch {epoch + 1}: loss {loss.item():.2f}, precision {found.precision:.2f} (chance {found.chance:.2f})")

print({name: round(value, 3) for name, value in evaluate(encoder, images, images.test_set(), size=8).items()})
