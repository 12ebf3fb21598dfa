"""A tiny BERT with random weights and a word tokenizer, built from a configuration: nothing is downloaded."""

import random

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(40)]


def write_model(folder, seed=0, words=WORDS, dropout=0.0):
    """A folder that `Transformer` of sentence-transformers loads."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: place for place, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, initializer_range=0.4, **sizes, **drops)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def model_of(folder, **how):
    transformer = Transformer(write_model(folder, **how))
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")


def texts(rows, seed, columns=2):
    """That many columns of short texts, the first two of a row alike."""
    draw = random.Random(seed)
    made = [[], *([] for _ in range(columns - 1))]
    for _ in range(rows):
        topic = draw.sample(WORDS, 4)
        for column in made:
            own = topic[: draw.randint(2, 4)] if column is made[0] or column is made[1] else draw.sample(WORDS, 3)
            column.append(" ".join([*own, draw.choice(WORDS)]))
    return made
