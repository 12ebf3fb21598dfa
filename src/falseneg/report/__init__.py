"""One self-contained HTML page for a run or a comparison."""

from __future__ import annotations

from pathlib import Path

from falseneg.errors import UserError

__all__ = ["write_report"]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run or of a comparison: one HTML file that needs no network and no other file, and can be read without scripts.

    What is missing in the folder (a run that was killed, a data set without labels) is left out of the page and said
    there.

    Args:
        folder: what `falseneg pretrain --out` or `falseneg compare --out` wrote; which of the two is seen from its files.
        out: the file to write; None writes report.html into the folder.

    Returns:
        The file that was written.

    Raises:
        UserError: the folder is missing or holds neither, or the file cannot be written.
    """
    from falseneg.files import write_bytes
    from falseneg.report.comparison import is_comparison, read_comparison
    from falseneg.report.page import comparison_page, run_page
    from falseneg.report.read import is_run, read_run

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder that a run or a comparison was written to")
    out = folder / "report.html" if out is None else Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of the HTML file to write")
    if is_comparison(folder):
        html = comparison_page(read_comparison(folder))
    elif is_run(folder):
        html = run_page(read_run(folder))
    else:
        raise UserError(
            f"{folder} holds neither a run nor a comparison; give the folder that 'falseneg pretrain --out' or "
            "'falseneg compare --out' wrote"
        )
    write_bytes(out, html.encode(errors="replace"))  # names of files may hold what is not text
    return out
