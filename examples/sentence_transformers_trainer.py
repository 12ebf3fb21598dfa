"""A plain SentenceTransformerTrainer on made-up questions and answers: the lines that change are marked "Before"."""

import random
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import falseneg as fn
from falseneg.sentence_transformers import FalseNegativeRankingLoss, FollowTraining, SameText

torch.manual_seed(0)
random.seed(0)
folder = tempfile.mkdtemp()

# Ten topics of six words each. Every answer of a topic answers every question of it, so one negative in ten is false.
TOPICS = [[f"{letter}{number}" for number in range(6)] for letter in "abcdefghij"]
rows = [topic for topic in TOPICS for _ in range(40)]
random.shuffle(rows)
pairs = {
    "anchor": ["what about " + " ".join(random.sample(topic, 2)) for topic in rows],
    "positive": [" ".join(random.sample(topic, 2)) + " it is" for topic in rows],
    "label": list(range(len(rows))),  # new: the rows, for detectors that keep something for each pair
}


def tiny_model() -> SentenceTransformer:
    """Random weights, so that nothing is downloaded; yours is SentenceTransformer("a name")."""
    words = ["[PAD]", "[UNK]", "what", "about", "it", "is", *(word for topic in TOPICS for word in topic)]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(folder), Pooling(32)], device="cpu")


model = tiny_model()

# Before:  loss = MultipleNegativesRankingLoss(model)
detector = fn.AnyOf([SameText(), fn.StartAt(fn.GlobalThreshold(alpha=0.1), "2 epochs")])
loss = FalseNegativeRankingLoss(model, detector, pairs=len(rows))

arguments = SentenceTransformerTrainingArguments(
    folder,
    num_train_epochs=6,
    per_device_train_batch_size=40,
    learning_rate=5e-3,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = SentenceTransformerTrainer(model, arguments, Dataset.from_dict(pairs), loss=loss)
trainer.add_callback(FollowTraining(loss))  # new: for what starts later, and for resuming
trainer.train()

print(loss.skipped())
loss.write_suspects(f"{folder}/suspects.csv")
with open(f"{folder}/suspects.csv") as file:
    print(*(line.strip() for line in file.readlines()[:4]), sep="\n")
found = [(pair.row, pair.candidate_row) for pair in loss.suspects.pairs]
print(f"of the pairs in the file {sum(rows[i] == rows[j] for i, j in found) / len(found):.0%} are of one topic")
