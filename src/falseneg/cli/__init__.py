"""The command line: ``falseneg COMMAND ...``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from falseneg.cli.messages import did_you_mean, sentence
from falseneg.errors import UserError

COMMANDS = {
    "compare": "train several treatments of false negatives alike and compare them (no arguments: on handwritten digits)",
    "pretrain": "train an encoder on images",
    "evaluate": "measure an encoder: nearest neighbours, linear probe, few labels",
    "audit": "find duplicates and false negatives in images, seen by any encoder, without training",
    "report": "write the report of a run or a comparison as one HTML file",
    "export": "write the encoder of a run to its own file",
    "recipes": "list the recipes that come with the package, or print one",
}
INTERRUPTED = 130
WRONG_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 a part failed, 2 wrong input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else WRONG_INPUT
    if arguments[0] in ("-V", "--version"):
        from falseneg import __version__

        print(f"falseneg {__version__}")
        return 0
    command = arguments[0]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        if command not in COMMANDS:
            hint = did_you_mean(command, COMMANDS)
            raise UserError(f"there is no command {command!r}{hint}; choose one of {', '.join(COMMANDS)}")
        status: int = import_module(f"falseneg.cli.{command}").run(arguments[1:])
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nfalseneg: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing to tell anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = sentence(error)
        if message is None:
            raise
        print(f"falseneg: {message}", file=sys.stderr)
        return WRONG_INPUT


def _overview() -> str:
    lines = [
        "usage: falseneg COMMAND [options]",
        "",
        "Find the false negatives of contrastive learning and stop the loss from repelling them.",
        "",
        "commands:",
        *(f"  {name:<9} {what}" for name, what in COMMANDS.items()),
        "",
        "falseneg COMMAND --help shows the options of a command.",
    ]
    return "\n".join(lines)
