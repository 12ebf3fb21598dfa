import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

import falseneg as fn
from falseneg.data import Digits, Subset
from falseneg.train.checkpoint import (
    check_settings,
    fingerprint,
    load_checkpoint,
    load_module,
    newest_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
    settings_of,
)
from falseneg.train.optimisers import AdamW


def test_round_trip_and_kept_copies(tmp_path):
    state = {"step": 7, "weights": {"x": torch.arange(3)}, "random": [random_states()], "nothing": None}
    save_checkpoint(tmp_path, state, ["step-00000007.pt", "last.pt"])
    save_checkpoint(tmp_path, {**state, "step": 8})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt", "step-00000007.pt"]
    assert load_checkpoint(tmp_path / "step-00000007.pt")["step"] == 7
    assert load_checkpoint(tmp_path / "previous.pt")["step"] == 7
    last = load_checkpoint(tmp_path / "last.pt")
    assert last["step"] == 8 and torch.equal(last["weights"]["x"], torch.arange(3)) and last["nothing"] is None


def test_a_run_that_is_killed_between_two_copies_makes_both_again(tmp_path):
    (tmp_path / "last.pt").mkdir()  # cannot be replaced by a file
    with pytest.raises(fn.UserError):
        save_checkpoint(tmp_path, {"step": 7}, ["step-00000007.pt", "last.pt"])
    assert (tmp_path / "step-00000007.pt").is_file()


def test_the_newest_that_is_whole(tmp_path):
    said = []
    assert newest_checkpoint(tmp_path, said.append) is None
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, {"step": step}, [f"step-0000000{step}.pt", "last.pt"] if step < 3 else ["last.pt"])
    assert newest_checkpoint(tmp_path, said.append) == (tmp_path / "last.pt", load_checkpoint(tmp_path / "last.pt"))
    for name, step, file in (("last.pt", 3, "previous.pt"), ("previous.pt", 2, "step-00000002.pt")):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1  # one bit on the disk
        (tmp_path / name).write_bytes(content)
        path, state = newest_checkpoint(tmp_path, said.append)
        assert path.name == file and state["step"] == step
        assert f"last.pt is damaged; continuing from {file}, which is of step {step}" in said[-1]
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(fn.UserError, match=r"last.pt is damaged"):
        newest_checkpoint(tmp_path, said.append)


def test_one_that_stays_may_be_newer_than_the_one_before_the_last(tmp_path):
    for step, names in ((1, ["step-00000001.pt", "last.pt"]), (2, ["last.pt"]), (3, ["step-00000003.pt", "last.pt"])):
        save_checkpoint(tmp_path, {"step": step}, names)
    for damaged, file in (("last.pt", "step-00000003.pt"), ("step-00000003.pt", "previous.pt")):
        (tmp_path / damaged).write_bytes(b"")
        path, state = newest_checkpoint(tmp_path, print)
        assert path.name == file and state["step"] == (2 if file == "previous.pt" else 3)


def test_a_disk_without_second_names_keeps_the_last_only(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step})
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2


def test_random_states_survive_a_file(tmp_path):
    def draws():
        return torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(2).tolist()

    random.gauss(0, 1)  # leaves half of a pair behind
    save_checkpoint(tmp_path, {"random": random_states()})
    expected = draws()
    restore_random_states(load_checkpoint(tmp_path / "last.pt")["random"])
    assert draws() == expected


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_damaged_and_foreign_files(tmp_path):
    save_checkpoint(tmp_path, {"x": torch.zeros(1000)})
    whole = (tmp_path / "last.pt").read_bytes()
    path = tmp_path / "other.pt"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (
        b"",
        bytes(flipped),
        whole[: len(whole) // 2],
        whole[:-30],
        b"text",
        pickle.dumps(Touch(tmp_path / "trap"), protocol=2),
    ):
        path.write_bytes(content)
        with pytest.raises(fn.UserError, match="damaged or not a checkpoint") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(fn.UserError, match="not a checkpoint of falseneg"):
        load_checkpoint(path)
    torch.save({"falseneg_checkpoint": 99}, path)
    with pytest.raises(fn.UserError, match="format 99"):
        load_checkpoint(path)
    torch.save({"falseneg_checkpoint": 1, "x": Touch(tmp_path / "trap")}, path)
    with pytest.raises(fn.UserError, match="damaged"):
        load_checkpoint(path)
    assert not (tmp_path / "trap").exists()


def test_modules_of_other_names_or_shapes():
    module = nn.Linear(2, 3)
    for other, words in (
        (nn.Linear(2, 4), r"head.bias is \(4,\) there and \(3,\) here"),
        (nn.Linear(2, 3, bias=False), r"head.bias is missing there"),
    ):
        with pytest.raises(fn.UserError, match=words):
            load_module(module, other.state_dict(), "head")


def test_settings():
    detector = fn.StartAt(fn.AllOf([fn.SupportSet(top_k=3), fn.FixedThreshold(0.5)]), "20%")
    found = settings_of(detector, "detector")
    assert found["detector"] == "StartAt" and found["detector.at"] == "20%"
    assert "3" in found.values() and "0.5" in found.values()
    assert settings_of(AdamW(0.1), "optimiser")["optimiser.learning_rate"] == "0.1"
    check_settings(found, dict(found))
    with pytest.raises(fn.UserError, match="a is '2' there and '1' here"):
        check_settings({"a": "1", "b": "x"}, {"a": "2", "b": "x"})
    with pytest.raises(fn.UserError, match="b is 'absent' there"):
        check_settings({"a": "1", "b": "x"}, {"a": "1"})


def test_fingerprint_knows_the_data():
    digits = Digits()
    some = Subset(digits, range(100))
    assert fingerprint(some) == fingerprint(Subset(digits, range(100)))
    unlabelled = Subset(digits, range(100))
    unlabelled.labels = None
    others = [Subset(digits, range(101)), Subset(digits, range(1, 101)), unlabelled]
    assert len({fingerprint(images) for images in [some, *others]}) == 4
