"""``falseneg report``: one HTML file of a run or a comparison, or the flagged pairs of a run as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from falseneg.cli.messages import SmallParser
from falseneg.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = SmallParser(
        prog="falseneg report",
        description="Write the report of a run or a comparison as one HTML file, or the flagged pairs of a run as CSV.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a run or a comparison")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML file to write (default: FOLDER/report.html)")
    parser.add_argument(
        "--pairs",
        nargs="?",
        const="",
        metavar="FILE.csv",
        help="write the flagged pairs of a run instead: files or keys of both images, their cosine, the epoch and, with "
        "labels, whether the flag is right (default: FOLDER/flagged.csv)",
    )
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UserError(f"there is no folder {options.folder}; give the folder of a run or a comparison")
    if options.pairs is not None:
        if options.out is not None:
            raise UserError(
                "--out names the page and --pairs the CSV file, and one call writes one of them; leave one out"
            )
        from falseneg.report.flags import write_pairs

        print(f"the flagged pairs are in {write_pairs(options.folder, Path(options.pairs) if options.pairs else None)}")
        return 0

    from falseneg.report import write_report

    print(f"the report is {write_report(options.folder, options.out)}")
    return 0
