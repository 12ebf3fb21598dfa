"""What people read is plain English: phrases that a native author in this field would not write."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READ = sorted(
    [ROOT / "README.md"]
    + [
        path
        for folder in ("src", "docs", "recipes")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".html", ".js", ".md", ".yaml")
    ]
)
INSTEAD = {
    r"\b(shall|whence|heed(ed|s)?|there(of|upon|in)|amongst|lest)\b": "a word of today",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bdear(er|est)?\b": "costly, slow",
    r"\b(could|can|cannot) (not )?be had\b": "could not be downloaded",
    r"\bin the place of\b": "instead of",
    r"\bwhole copy in its place\b": "restore an undamaged copy",
    r"\b[Ww]ant of (memory|room|space)\b": "memory ran out",
    r"\bmake room,? (or|then)\b": "free some space",
    r"\bchoose of\b": "choose one of",
    r"--help tells": "see --help",
    r"(?<!there )(?<!There )\b(is|are) no (?!faster|longer|slower|more|better|less|larger|smaller)\w+": "is not a",
    r"\bare wanted of\b": "cannot form",
    r"\bfetch (it|them) by hand\b": "download it yourself",
    r"\bthousand million\b": "billion",
    '--(?!init_from|image_size")[a-z]+_[a-z_]+': "the spelling of the command line, --batch-size",
    r"\bby and by\b": "gradually",
    r"\bsuit themselves\b": "are chosen to suit",
    r"\b(begun|made|begins|begin|drawn|start) anew\b": "again",
    r"\bof (his|the user's) own\b": "the user's own",
    r"\b(process|file|denominator|function) of its own\b": "its own",
    r"\bput (it|them|the file) back\b": "restore it",
}


def running(text):
    """The text on one line: a sentence is often wrapped, as comments or as adjacent string literals."""
    return re.sub(r"\s*\n\s*#?\s*", " ", re.sub(r"\"\s*\n\s*f?\"", "", text))


@pytest.mark.parametrize("phrase", INSTEAD)
def test_no_phrase_that_a_native_author_would_not_write(phrase):
    found = []
    for path in READ:
        for hit in re.finditer(phrase, text := running(path.read_text())):
            found.append(f"{path.relative_to(ROOT)}: …{text[max(0, hit.start() - 40) : hit.end() + 40]}…")
    assert not found, f"better: {INSTEAD[phrase]}\n" + "\n".join(found)


def test_a_wrapped_sentence_is_read_as_one():
    assert running('f"{path} is "\n    f"no YAML"') == 'f"{path} is no YAML"'
    assert running("# is\n#   no YAML") == "# is no YAML"
