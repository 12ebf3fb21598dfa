"""`FalseNegativeRankingLoss` inside a `SentenceTransformerTrainer`: what is counted, written, saved and resumed."""

import csv

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from texts import tiny_texts

import falseneg as fn
from falseneg.sentence_transformers import FalseNegativeRankingLoss, FollowTraining, SameText

ROWS, BATCH = 20, 8  # the last batch of an epoch has four


def trainer_of(folder, loss, columns=3, epochs=2, callbacks=(), **how):
    named = dict(zip(("anchor", "positive", "negative_1"), tiny_texts.texts(ROWS, 0, columns), strict=False))
    data = Dataset.from_dict({**named, "label": list(range(ROWS))})
    settings = {"per_device_train_batch_size": BATCH, "num_train_epochs": epochs, "learning_rate": 1e-2, "seed": 1}
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "save_strategy": "no",
    }
    arguments = SentenceTransformerTrainingArguments(str(folder), **{**settings, **quiet, **how})
    return SentenceTransformerTrainer(loss.model, arguments, data, loss=loss, callbacks=list(callbacks))


def weights(model):
    return torch.cat([each.detach().flatten().clone() for each in model.parameters()])


@pytest.mark.parametrize("size", [None, 3])
def test_training_without_detection_is_that_of_sentence_transformers(tmp_path, size):
    trained = []
    for place, kind in enumerate((FalseNegativeRankingLoss, losses.MultipleNegativesRankingLoss)):
        model = tiny_texts.model_of(tmp_path / str(place))
        cached = {"mini_batch_size": size} if place == 0 else {}
        # Adam would make steps of the rounding error of a gradient that is 0, that of the keys' bias.
        trainer_of(tmp_path / "out", kind(model, **cached), optim="sgd", learning_rate=0.1).train()
        trained.append(weights(model))
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-5)
    fresh = weights(tiny_texts.model_of(tmp_path / "fresh"))
    assert (trained[0] - fresh).abs().max() > 1e-2


def test_figures_of_the_last_epoch_and_its_pairs(tmp_path):
    """20 pairs with one hard negative each, in batches of 8, 8 and 4: 8 · 15 + 8 · 15 + 4 · 7 negatives."""
    model = tiny_texts.model_of(tmp_path / "model")
    loss = FalseNegativeRankingLoss(model, fn.RelativeToPositive(absolute_margin=0.1), pairs=ROWS)
    trainer_of(tmp_path / "out", loss, callbacks=[FollowTraining(loss)]).train()
    skipped = loss.skipped()
    assert skipped.negatives == 268 and 0 < skipped.flagged < 268 and skipped.anchors == ROWS
    assert loss.clock == fn.Clock(5, 3, 2)
    loss.write_suspects(tmp_path / "pairs.csv")
    loss.write_suspects(tmp_path / "pairs.parquet")
    with open(tmp_path / "pairs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [line["candidate"] for line in lines] == [line["candidate"] for line in table]
    query, document, hard = tiny_texts.texts(ROWS, 0, 3)
    kinds = set()
    assert 0 < len(table) <= skipped.flagged
    for line in table:
        row, other = line["row"], line["candidate_row"]
        assert (line["query"], line["document"], line["direction"]) == (query[row], document[row], "query_to_doc")
        assert line["candidate"] in (document[other], hard[other]) and line["guide_cosine"] is None
        assert line["cosine"] > line["positive_cosine"] - 0.1
        kinds.add(line["candidate"] == hard[other])
    assert kinds == {True, False}
    assert [line["cosine"] for line in table] == sorted((line["cosine"] for line in table), reverse=True)


def test_the_most_similar_of_the_flagged_pairs_are_kept_each_once(tmp_path):
    model = tiny_texts.model_of(tmp_path / "model")
    directions = ("query_to_doc", "query_to_query", "doc_to_doc")
    batches, loss = [tiny_texts.texts(9, seed, 3) for seed in (1, 0, 2, 0)], {}
    for keep in (1000, 7, 0):
        loss[keep] = FalseNegativeRankingLoss(
            model, fn.FixedThreshold(0.9), guide=model, directions=directions, suspects=keep
        )
        for texts in batches:
            loss[keep]([model.preprocess(column) for column in texts])
    every, few = loss[1000].suspects.pairs, loss[7].suspects.pairs
    texts = {(pair.direction, pair.query, pair.document, pair.candidate) for pair in every}
    assert 7 < len(every) == len(texts) < loss[1000].skipped().flagged
    assert [pair.cosine for pair in few] == [pair.cosine for pair in every[:7]]
    assert loss[0].suspects.pairs == [] and loss[0].skipped() == loss[7].skipped()
    assert {pair.direction for pair in every} == set(directions)
    for pair in every:  # the guide is the model
        assert pair.guide_cosine == pytest.approx(pair.cosine, abs=1e-5)
        assert pair.guide_positive_cosine == pytest.approx(pair.positive_cosine, abs=1e-5)


def test_a_detector_that_starts_later_follows_the_training(tmp_path):
    flagged = {}
    for at in ("1 epoch", "2 epochs"):
        loss = FalseNegativeRankingLoss(tiny_texts.model_of(tmp_path / at), fn.StartAt(fn.FixedThreshold(-1.0), at))
        trainer_of(tmp_path / "out", loss, callbacks=[FollowTraining(loss)]).train()
        flagged[at] = loss.skipped().share
    assert flagged == {"1 epoch": 1.0, "2 epochs": 0.0}


def test_what_was_learned_for_each_pair_is_resumed(tmp_path):
    def run(name, **how):
        loss = FalseNegativeRankingLoss(tiny_texts.model_of(tmp_path / name), fn.GlobalThreshold(alpha=0.3), pairs=ROWS)
        trainer = trainer_of(
            tmp_path / f"out {name}",
            loss,
            callbacks=[FollowTraining(loss)],
            save_strategy="epoch",
        )
        trainer.train(**how)
        return loss

    def table(loss):
        return loss.criterion.detector.tables["query_to_doc"].own

    whole = run("whole")
    first = sorted((tmp_path / "out whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    assert (first / "falseneg.pt").is_file()
    (tmp_path / "out again").mkdir()
    first.rename(tmp_path / "out again" / first.name)
    again = run("again", resume_from_checkpoint=True)
    assert torch.equal(table(again).visits, table(whole).visits) and int(table(whole).visits.min()) == 2
    torch.testing.assert_close(table(again).column("threshold"), table(whole).column("threshold"))
    torch.testing.assert_close(weights(again.model), weights(whole.model))
    (tmp_path / "out again" / first.name / "falseneg.pt").unlink()
    for later in (tmp_path / "out again").glob("checkpoint-*"):
        if later.name != first.name:
            later.rename(tmp_path / later.name)
    with pytest.raises(fn.UserError, match="cannot be resumed; add this callback"):
        run("again", resume_from_checkpoint=True)


def test_the_settings_are_in_the_model_card(tmp_path):
    model = tiny_texts.model_of(tmp_path / "model")
    loss = FalseNegativeRankingLoss(model, SameText(), directions=("query_to_doc", "doc_to_query"))
    trainer_of(tmp_path / "out", loss, epochs=1).train()
    model.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "FalseNegativeRankingLoss" in card and '"detector": "SameText"' in card and "doc_to_query" in card


def test_pairs_are_written_only_to_a_table(tmp_path):
    loss = FalseNegativeRankingLoss(tiny_texts.model_of(tmp_path / "model"))
    with pytest.raises(fn.UserError, match=r"pairs.txt; give a file .csv or .parquet"):
        loss.write_suspects(tmp_path / "pairs.txt")
    loss.write_suspects(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().count("\n") == 1
