import os
import subprocess
import sys

import pytest

from falseneg.cli import COMMANDS, main


def command(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "falseneg", *arguments], capture_output=True, text=True, **more)


def modules_after(code):
    """The modules that are imported after some code, in a fresh process, and its processor seconds."""
    script = f"import sys, time\n{code}\nprint(' '.join(sys.modules), file=sys.stderr)\nprint(time.process_time(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *_, names, seconds = done.stderr.strip().splitlines()
    return set(names.split()), float(seconds), done.stdout


def test_help_answers_at_once_and_imports_nothing_heavy():
    names, seconds, shown = modules_after("from falseneg.cli import main\nassert main(['--help']) == 0")
    assert not {"torch", "numpy", "jsonargparse", "rich"} & names
    assert seconds < 1
    assert all(name in shown for name in COMMANDS)


def test_help_of_pretrain_costs_little_more_than_torch():
    # Of one process: torch's own time differs more from one to the next than what is added to it.
    code = "import torch\nprint(time.process_time())\nfrom falseneg.cli import main\n"
    names, seconds, shown = modules_after(f"{code}try: main(['pretrain', '--help'])\nexcept SystemExit: pass")
    torch_alone = float(shown.split(maxsplit=1)[0])
    assert not {"torchvision", "timm", "lightning_fabric", "sklearn", "pyarrow", "matplotlib", "faiss"} & names
    assert seconds < torch_alone + 1
    for option in (
        "--data",
        "--detector",
        "--batch-size",
        "--augmentation.crop-scale",
        "--expected-classes",
        "--resume",
    ):
        assert f"{option} " in shown, option
    assert "torch.utils.data" not in shown
    assert "SupportSet" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.split("options:", 1)[1].splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  --"):
            # Either the text stands behind the option, or below it.
            assert len(line.split("  ")) > 2 or after.startswith("      "), line


def test_it_is_a_program():
    done = command("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "falseneg")


def test_without_a_command_it_says_what_there_is():
    done = command()
    assert done.returncode == 2
    assert "pretrain" in done.stdout


def test_an_unknown_command_is_answered_with_the_nearest():
    done = command("pretrian")
    assert done.returncode == 2
    assert "did you mean pretrain?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "falseneg", "recipes", "digits"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b""
