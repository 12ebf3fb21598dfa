import json
import subprocess

import pytest

import falseneg as fn
from falseneg.train.folder import about, claimed, final_figures, git_state, write_about


def test_a_free_folder_is_taken_once(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claimed(folder, resume=False):
        pass
    assert not (tmp_path / "deep").exists()  # a start that fails leaves no trace
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "metrics.jsonl").touch()
    with claimed(folder, resume=False):  # nothing was achieved that could be lost
        pass
    for name in ("metrics.jsonl", "checkpoints/last.pt", "encoder.safetensors"):
        (folder / name).write_text("x")
        with pytest.raises(fn.UserError, match="holds a run already"), claimed(folder, resume=False):
            pass
        (folder / name).unlink()
    (folder / "checkpoints" / ".last.pt.12.tmp").write_text("half")
    with claimed(folder, resume=True):
        pass
    assert not list((folder / "checkpoints").iterdir())


def test_a_start_beside_a_running_one_is_refused(tmp_path):
    """Of two that were both let in, one may have ended by the time that the other gets the folder."""
    folder = tmp_path / "deep" / "run"
    with claimed(folder, resume=False):
        with pytest.raises(fn.UserError, match="another process is writing the run.*--out"), claimed(folder, False):
            pass
        assert folder.is_dir()
    assert not (tmp_path / "deep").exists()


def test_other_files_do_no_harm(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with claimed(tmp_path, resume=False):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_written_about_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["falseneg", "pretrain", "--out", "a b"])
    written = write_about(tmp_path, 5, {"images": 3})
    assert about(tmp_path) == written == json.loads((tmp_path / "run.json").read_text())
    assert written["command"] == "falseneg pretrain --out 'a b'" and written["seed"] == 5 and written["images"] == 3
    assert written["git"] is None
    assert about(tmp_path / "nowhere") == {}


def test_the_state_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init"], ["add", "file"], [*identity, "commit", "-m", "one"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    clean = git_state()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert git_state() == {**clean, "dirty": True}


def test_git_is_not_asked_about_a_run_that_is_resumed(tmp_path, monkeypatch):
    """It would run what the settings of a repository name, and that may have come with the run."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init"], check=True, capture_output=True)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(hook)], check=True)
    (tmp_path / "run.json").write_text('{"git": {"commit": "0123", "dirty": false}}')
    assert write_about(tmp_path, 0, {}, resume=True)["git"] == {"commit": "0123", "dirty": False}
    assert not (tmp_path / "ran").exists()


def test_a_run_is_finished_when_its_last_line_and_its_encoder_are_there(tmp_path):
    assert final_figures(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch"}\n{"kind": "final", "knn": 0.5}\n')
    assert final_figures(tmp_path) is None
    (tmp_path / "encoder.safetensors").write_bytes(b"")
    assert final_figures(tmp_path) == {"knn": 0.5}
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "epo')
    assert final_figures(tmp_path) == {"knn": 0.5}
    (tmp_path / "metrics.jsonl").write_text('{"kind": "final"}\n{"kind": "step"}\n')
    assert final_figures(tmp_path) is None
