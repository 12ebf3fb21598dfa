"""What a user can do wrong: one sentence on stderr, status 2, and nothing written."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from falseneg.cli import main
from falseneg.cli.messages import did_you_mean, sentence
from falseneg.errors import UserError

YAMLS = {
    "unknown-option.yaml": "data: Digits\nepochz: 3\n",
    "unknown-class.yaml": "data: Digits\ndetector: {class_path: AllOf, init_args: {detectors: [SuportSet]}}\n",
    "unknown-part.yaml": "data: Digits\nmethod: {class_path: SimCLR, init_args: {encoder: {nam: resnet18}}}\n",
    "wrong-kind.yaml": "data: Digits\nepochs: many\n",
    "no-yaml.yaml": "data: [\n",
    "variants.yaml": "variants: {mine: {detektor: SupportSet}}\n",
    "twice.yaml": "variants: {mine/yours: {seed: 1}}\n",
    "unknown-variant.yaml": "variants: {none: , fnc-atract: , mine: {epochs: 1}}\n",
    "no-variants.yaml": "variants: {none: 3}\n",
    "one-variant.yaml": "variants: none\n",
    "empty-variants.yaml": "variants: {}\n",
    "comparison.yaml": "data: Digits\nvariants: [none]\n",
}

# After `falseneg`: the arguments, and what the sentence must hold.
WRONG = {
    "pretrain --data Digits --detektor Oracle --out o": ["--detektor", "--detector"],
    "pretrain --data Digits --detector SuportSet --out o": ["SuportSet", "SupportSet"],
    "pretrain --data Digits --detector nowhere.Mine --out o": ["nowhere.Mine", "import"],
    "pretrain --data Digits --detector Digits --out o": ["--detector", "Oracle"],
    "pretrain --data Digits --detector FNC --out o": ["SupportSet", "--variant fnc-eliminate"],
    "pretrain --data Digits --detector GloFND --out o": ["GlobalThreshold", "--variant glofnd"],
    "pretrain --data plain --out o": ["--data Folder --data.root plain"],
    "pretrain --data ./plain --out o": ["--data Folder --data.root plain"],
    "pretrain --data Digits --variant fnc-atract --out o": ["did you mean fnc-attract?"],
    "pretrain --data Digits --expected-classes 10 --variant second-pass --out o": [
        "another run",
        "--detector.guide RUN",
    ],
    "pretrain --data Digits --variant moco-fnc-attract --out o": ["--expected-classes", "the labels say 10"],
    "pretrain --data Digits --expected-classes 10 --variant same-text --out o": ["is for images with captions"],
    "compare --variants second-pass --out o": ["the run of none", "compare the variant none"],
    "pretrain --data Digits --variant fnc-attract --out o": ["--expected-classes", "the labels say 10"],
    "pretrain --data Digits --expected-classes 10 --variant ifnd --detector Oracle --out o": [
        "--detector",
        "leave one",
    ],
    "pretrain --data Digits --loggers nonsense --out o": ["loggers", "tensorboard, wandb"],
    "compare --minutes 5 --epochs 3 --out o": ["--minutes sets the epochs"],
    "compare --minutes 0 --out o": ["--minutes is 0", "more than 0"],
    "pretrain --data s3://bucket/photos --out o": ["--data Folder --data.root s3://bucket/photos"],
    "pretrain --data s3://bucket/a-*.tar --out o": ["--data Shards --data.path 's3://bucket/a-*.tar'"],
    "pretrain --data Foldr --data.root x --out o": ["Foldr", "Folder"],
    "pretrain --data Folder --data.rot x --out o": ["--data.rot", "root"],
    "pretrain --data Folder --out o": ["--data.root"],
    "pretrain --data Folder --data.root nowhere --out o": ["nowhere", "does not exist"],
    "pretrain --data Digits --test Folder --test.root nowhere --out o": ["falseneg: the folder nowhere does not exist"],
    "evaluate timm:resnet10t --data Folder --data.root nowhere": ["falseneg: the folder nowhere does not exist"],
    "pretrain --data Folder --data.root empty --out o": ["empty", "no images"],
    "pretrain --data Folder --data.root broken --accelerator cpu --out o": ["cut.png"],
    "pretrain --data Digits --epochs many --out o": ["--epochs", "'many'", "whole number"],
    "pretrain --data Digits --batch-size 1 --out o": ["batch_size is 1", "at least 2"],
    "pretrain --data Digits --batch-size -7 --out o": ["batch_size is -7", "at least 2"],
    "pretrain --data Digits --method MoCo --method.bank 100000000000000000000 --out o": ["bank", "at most"],
    "pretrain --data Digits --method.encoder.image-size big --out o": ["--method.encoder.image-size", "whole number"],
    "pretrain --data Digits --method.encoder.imagesize 8 --out o": ["--method.encoder.imagesize", "image_size"],
    "pretrain --data Digits --method.encoder.name resnet19 --out o": ["resnet19", "resnet18"],
    "pretrain --data Digits --method.vies 3 --out o": ["--method.vies", "views"],
    "pretrain --data Digits --strategy atract --out o": ["atract", "attract"],
    "pretrain --data Digits --strategy.positive -1 --out o": ["-1", "at least 0"],
    "pretrain --data Digits --strategy.positve 1 --out o": ["--strategy.positve", "positive"],
    "pretrain --data Digits --augmentation.crop-scal [.1,1] --out o": ["--augmentation.crop-scale"],
    "pretrain --data Digits --augmentation.crop-scale .1 1 --out o": ["--augmentation.crop-scale", "list"],
    "pretrain --data Digits --detector FixedThreshold --detector.threshold 2 --out o": ["2", "-1 to 1"],
    "pretrain --data Digits --detector FixedThreshold --out o": ["--detector.threshold"],
    "pretrain --data Digits --detector StartAt --detector.detector SupportSet --detector.detector.topk 3 --out o": [
        "--detector.detector.topk",
        "top-k",
    ],
    "pretrain --config digits --method.support-views 1 --detector SupportSet --detector.top-k 999 --out o": [
        "999",
        "top_k",
    ],
    "pretrain --data Digits --optimiser Adam --out o": ["Adam", "AdamW"],
    f"pretrain --data Digits --seed {10**30} --out o": ["seed is 1000000000000000000000000000000", "from 0 to"],
    f"pretrain --data Digits --augmentation.size {10**30} --out o": ["size is 1000", "at most"],
    f"pretrain --data Digits --method.support-views {2**63} --out o": ["SimCLR: support_views is 9223372036854775808"],
    "pretrain --data Digits --workers 1000000 --out o": ["workers is 1000000", "at most"],
    "pretrain --data Digits --devices 1000000 --accelerator cpu --out o": ["devices is 1000000", "at most"],
    "pretrain --data Digits --warmup soon --out o": ["soon", "10%"],
    "pretrain --data Digits --data.split trian --out o": ["trian", "train"],
    "pretrain --data Digits --out": ["--out", "no value"],
    "pretrain --data Digits": ["--out DIR"],
    "pretrain surplus --data Digits --out o": ["surplus"],
    "pretrain --config nowhere.yaml --out o": ["nowhere.yaml"],
    "pretrain --config digts --out o": ["digts", "digits"],
    "pretrain --config unknown-option.yaml --out o": ["--epochz", "epochs"],
    "pretrain --config unknown-class.yaml --out o": ["SuportSet", "SupportSet"],
    "pretrain --config unknown-part.yaml --out o": ["--method.encoder.nam", "name"],
    "pretrain --config wrong-kind.yaml --out o": ["--epochs", "many"],
    "pretrain --config no-yaml.yaml --out o": ["no-yaml.yaml", "line 2"],
    "pretrain --resume nowhere": ["nowhere", "no run"],
    "pretrain --data Digits --resume": ["--resume", "--out"],
    "evaluate nowhere": ["nowhere"],
    "evaluate": ["needs SOURCE"],
    "evaluate no-yaml.yaml --data Digits": ["no-yaml.yaml"],
    "export nowhere --out encoder.safetensors": ["nowhere"],
    "export nowhere --out encoder.bin": [".safetensors"],
    "export nowhere --ot x": ["--out"],
    "report nowhere": ["nowhere"],
    "recipes digts": ["digts", "digits"],
    "compare --devices 2 --out o": ["compare trains each run in one process", "--jobs"],
    "compare --evaluate later --out o": ["leave --evaluate out"],
    "pretrain --config digits --nodes 2 --accelerator cpu --out o": ["MASTER_ADDR, MASTER_PORT, NODE_RANK are not set"],
    "pretrain --config digits --evaluate never --out o": ["evaluate is 'never'", "now, later"],
    "pretrain --config digits --skip-not-finite -1 --out o": ["skip_not_finite is -1"],
    "compare --variants none fnc-atract": ["fnc-atract", "fnc-attract"],
    "compare --seeds one": ["--seeds", "one", "whole number"],
    "compare --data Digits --variants fnc-attract": ["--expected-classes", "10"],
    "compare --data Folder --data.root plain --accelerator cpu --variants none oracle": ["oracle", "labels"],
    "compare --config digits --config nowhere.yaml": ["nowhere.yaml"],
    "compare --config digits --config variants.yaml": ["mine", "--detektor"],
    "compare --config digits --config twice.yaml": ["mine/yours"],
    "compare --config digits --config unknown-variant.yaml": ["fnc-atract", "did you mean fnc-attract", "mine"],
    "compare --config digits --config no-variants.yaml": ["no-variants.yaml", "a list of names"],
    "compare --config digits --config one-variant.yaml": ["one-variant.yaml", "a list of names"],
    "compare --config digits --config empty-variants.yaml": ["at least one variant"],
    "compare --variants-file variants.yaml": ["did you mean --variants?"],
    "pretrain --config comparison.yaml --out o": ["comparison.yaml", "falseneg compare --config"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current directory with good and bad files in it."""
    monkeypatch.chdir(tmp_path)
    for name, content in YAMLS.items():
        (tmp_path / name).write_text(content)
    for folder in ("empty", "broken", "plain"):
        Path(folder).mkdir()
    for number in range(8):
        Image.effect_noise((8, 8), 50).save(f"plain/{number}.png")
        Image.effect_noise((8, 8), 50).save(f"broken/{number}.png")
    Path("broken/cut.png").write_bytes(Path("plain/0.png").read_bytes()[:40])
    return tmp_path


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_is_answered_in_one_sentence(arguments, place, capsys):
    before = sorted(place.rglob("*"))
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("falseneg: ") and len(said.strip().splitlines()) == 1
    for part in WRONG[arguments]:
        assert part in said
    assert sorted(place.rglob("*")) == before


def test_the_process_ends_with_status_2_and_without_a_traceback(place):
    arguments = ["pretrain", "--data", "Digits", "--detector", "SuportSet", "--out", "o"]
    done = subprocess.run([sys.executable, "-m", "falseneg", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean SupportSet?" in done.stderr and "Traceback" not in done.stderr
    assert not Path("o").exists()


def test_a_bug_keeps_its_traceback(monkeypatch):
    from falseneg.cli import recipes

    def broken(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(recipes, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["recipes"])


@pytest.mark.parametrize(
    "error, part",
    [
        (UserError("one\n  sentence"), "one sentence"),
        (torch.OutOfMemoryError("CUDA out of memory"), "--accumulate"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--batch-size"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "disk is full at runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "permission"),
    ],
)
def test_errors_of_the_machine_have_a_sentence(error, part):
    assert part in sentence(error)


def test_other_errors_have_none():
    assert sentence(RuntimeError("shapes differ")) is None
    assert sentence(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_the_nearest_name():
    assert did_you_mean("suportset", ["SupportSet", "Oracle"]) == " (did you mean SupportSet?)"
    assert did_you_mean("zzz", ["SupportSet", "Oracle"]) == ""
