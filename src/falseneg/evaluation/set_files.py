"""Whether a published data set lies where it is looked for, and one sentence where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from falseneg.data.messages import MEND
from falseneg.data.torchvision_sets import RefusedArguments
from falseneg.errors import UserError

AS_PUBLISHED = "put it there as it is published"


@contextmanager
def of_set(name: str, place: Path) -> Iterator[None]:
    """Whatever is refused meanwhile, the sentence says of which set, and where it lies.

    Raises:
        UserError: as it was raised, with the place, and without the advice to leave images out, which a published set cannot.
    """
    try:
        yield
    except UserError as error:
        said = str(error).replace(MEND, AS_PUBLISHED)
        where = f"{name}: " if str(place) in said else f"{name} in {place}: "
        raise UserError(said if said.startswith(name) and str(place) in said else where + said) from error


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

    with of_set(name, place):
        try:
            if download and fetch is not None and missing():
                fetch(str(place))
            if absent := missing():
                more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                hint = "give --protocol.download true, or " if fetch is not None and not download else ""
                raise UserError(
                    f"{name} is not whole in {place}: of {', '.join(files)} there is no {absent[0]}{more}; {hint}{AS_PUBLISHED}"
                )
            yield str(place)
        except RefusedArguments as error:  # torchvision's ValueErrors, which here no argument is to blame for
            raise _unreadable(name, place, files, error.__cause__ or error) from error
        except UserError:
            raise
        except Exception as error:  # whatever damaged annotations make torchvision, scipy and pickle raise
            raise _unreadable(name, place, files, error) from error


def _unreadable(name: str, place: Path, files: Sequence[str], error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    reason = f"there is no {reason}" if isinstance(error, KeyError) else reason
    return UserError(
        f"{name} in {place} cannot be read ({reason}): of {', '.join(files)} one is damaged, or not as it is published"
    )
