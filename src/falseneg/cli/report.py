"""``falseneg report``: one HTML file of a run or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from falseneg.cli.messages import SmallParser
from falseneg.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = SmallParser(
        prog="falseneg report", description="Write the report of a run or a comparison as one HTML file."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a run, or of a comparison")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: FOLDER/report.html)")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UserError(f"there is no folder {options.folder}; give the folder of a run or a comparison")

    from falseneg.report import write_report

    print(f"the report is {write_report(options.folder, options.out)}")
    return 0
