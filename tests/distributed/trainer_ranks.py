"""A SentenceTransformerTrainer on each of two gloo processes; a program of its own under torchrun: trainer_ranks.py FOLDER."""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses

sys.path.insert(0, str(Path(__file__).parents[1]))

from texts import tiny_texts

import falseneg as fn
from falseneg.sentence_transformers import FalseNegativeRankingLoss, FollowTraining

ROWS = 24
LOSSES = {
    "theirs": lambda model: losses.MultipleNegativesRankingLoss(model, gather_across_devices=True),
    "ours": FalseNegativeRankingLoss,
    "cached": lambda model: FalseNegativeRankingLoss(model, mini_batch_size=3),
    "glofnd": lambda model: FalseNegativeRankingLoss(model, fn.GlobalThreshold(alpha=0.2), pairs=ROWS),
}


def train(loss, folder):
    named = dict(zip(("anchor", "positive", "negative_1"), tiny_texts.texts(ROWS, 0, 3), strict=True))
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
    }
    how = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.1, "optim": "sgd"}
    arguments = SentenceTransformerTrainingArguments(folder, **how, **quiet)
    data = Dataset.from_dict({**named, "label": list(range(ROWS))})
    trainer = SentenceTransformerTrainer(loss.model, arguments, data, loss=loss)
    if isinstance(loss, FalseNegativeRankingLoss):
        trainer.add_callback(FollowTraining(loss))
    trainer.train()
    found = {"weights": torch.cat([each.detach().flatten() for each in loss.model.parameters()]).clone()}
    if isinstance(loss, FalseNegativeRankingLoss):
        found |= {"skipped": torch.tensor(loss.skipped()), "pairs": torch.tensor(len(loss.suspects.pairs))}
        found |= {name: value for name, value in loss.criterion.state_dict().items() if "threshold" in name}
    return found


def main(folder):
    rank = os.environ["RANK"]
    # Before the processes meet: afterwards only the first of them writes models.
    made = {name: make(tiny_texts.model_of(f"{folder}/{name} {rank}")) for name, make in LOSSES.items()}
    torch.save({name: train(loss, f"{folder}/out") for name, loss in made.items()}, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
