"""A plain open_clip loop on made-up pictures, whose captions fit many of them: five lines change, marked "Before"."""

import json
import tempfile
from pathlib import Path

import open_clip
import torch

import falseneg as fn

torch.manual_seed(0)
torch.set_num_threads(1)
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1), "black": (0, 0, 0)}
PAIRS, BATCH, EPOCHS = 500, 50, 8

# A model small enough for a laptop; any name of open_clip.list_models() does.
folder = Path(tempfile.mkdtemp())
tiny = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
(folder / "tiny.json").write_text(json.dumps(tiny))
open_clip.add_model_config(folder / "tiny.json")
model = open_clip.create_model("tiny")
tokenize = open_clip.get_tokenizer("tiny")

# Pictures of one colour with noise; the captions of one colour are alike, so one negative in five is false.
label = torch.randint(len(COLOURS), (PAIRS,))
colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[label]
images = colours[:, :, None, None] + 0.3 * torch.randn(PAIRS, 3, 16, 16)
names = list(COLOURS)
texts = tokenize([f"picture {row % 7}: {names[kind]}" for row, kind in enumerate(label)], context_length=8)

# Before:  criterion = open_clip.ClipLoss()
criterion = fn.PairLoss(fn.GlobalThreshold(alpha=1 / len(COLOURS), start="2 epochs"), pairs=PAIRS)
optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)

model.train()
for epoch in range(EPOCHS):
    order = torch.randperm(PAIRS)  # Before:  for batch in loader, which must bring the rows of its pairs, too
    for step, rows in enumerate(order.split(BATCH)):
        image_features, text_features, logit_scale = model(images[rows], texts[rows])
        clock = fn.Clock(epoch * PAIRS // BATCH + step, PAIRS // BATCH, EPOCHS)
        # Before:  loss = criterion(image_features, text_features, logit_scale)
        loss = criterion(image_features, text_features, logit_scale, sample=rows, clock=clock)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    shares = {name: f"{flagged.share:.0%}" for name, flagged in criterion.flagged.items()}
    pairs = criterion.flagged["image->text"].pairs()
    right = (label[rows][pairs.anchor] == label[rows][pairs.candidate]).float().mean()
    print(f"epoch {epoch + 1}: loss {loss.item():.2f}, flagged {shares}, of these false {right:.0%}")

# What was learned goes on as open_clip's own: a file of weights, or the folder that "local-dir:" reads.
torch.save(model.state_dict(), folder / "weights.pt")
fn.OpenCLIP("tiny", weights=folder / "weights.pt").export(folder, tau=1 / logit_scale.item())
again, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'open_clip'}")
with torch.no_grad():
    same = torch.allclose(again.encode_image(images[:8]), model.eval().encode_image(images[:8]), atol=1e-5)
print("loaded again by open_clip:", same)
