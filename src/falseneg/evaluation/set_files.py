"""Whether a published data set lies where it is looked for, and one sentence where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from falseneg.errors import UserError


@contextmanager
def set_in(
    root: str, name: str, files: Sequence[str], fetch: Callable[[str], Any] | None, download: bool
) -> Iterator[str]:
    """The folder of a set, once all that is looked for is there; whatever goes wrong while it is read is one sentence.

    Args:
        root: the folder that holds it.
        name: of the set, for messages.
        files: what is looked for in the root, with "/" between folders.
        fetch: downloads it into the root; None where nobody can.
        download: fetch it if it is not there.

    Yields:
        The root, with the home directory in place of "~".

    Raises:
        UserError: it is not there as it is published (what was looked for, and where, is said), or it cannot be read.
    """
    place = Path(root).expanduser()

    def missing() -> list[str]:
        return [each for each in files if not (place / each).exists()]

    try:
        if download and fetch is not None and missing():
            fetch(str(place))
        if absent := missing():
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            hint = "give --protocol.download true, or " if fetch is not None and not download else ""
            raise UserError(
                f"{name} is not whole in {place}: of {', '.join(files)} there is no {absent[0]}{more}; "
                f"{hint}put it there as it is published"
            )
        yield str(place)
    except UserError:
        raise
    except Exception as error:  # whatever damaged annotations make torchvision, scipy and pickle raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name} in {place} cannot be read ({reason}): its annotations or its images are damaged, or not as they are published"
        ) from error
