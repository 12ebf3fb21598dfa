"""Draws docs/idea.svg, the picture of the idea, from scikit-learn's handwritten digits: python docs/idea.py"""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

DIGITS = load_digits()
BLUE, RED, GREEN, GREY, INK = "#2563eb", "#dc2626", "#059669", "#9ca3af", "#111827"
SIZE = 52


def picture(row, x, y, frame, dashed=False, shift=0):
    pixels = 255 - (np.roll(DIGITS.images[row], shift, axis=1) / 16 * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<image href="data:image/png;base64,{data}" x="{x}" y="{y}" width="{SIZE}" height="{SIZE}"/>'
        f'<rect x="{x - 2}" y="{y - 2}" width="{SIZE + 4}" height="{SIZE + 4}" rx="6" fill="none" stroke="{frame}"'
        f' stroke-width="3"{dash}/>'
    )


def arrow(x1, y1, x2, y2, colour, marker, dashed=False):
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="2.5"{dash} marker-end="url(#{marker})"/>'


def text(x, y, words, size=15, colour=INK, weight="normal", anchor="middle"):
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>'


def panel(left, title, foot, treat):
    """One panel: the anchor, its other view, and five candidates, two of them of the anchor's kind."""
    parts = [text(left + 160, 40, title, 17, weight="bold"), text(left + 160, 372, foot, 14)]
    parts += [picture(13, left + 20, 150, BLUE), text(left + 46, 226, "anchor", 13, BLUE)]
    parts += [picture(13, left + 20, 262, BLUE, shift=1), text(left + 46, 338, "other view", 13, BLUE)]
    parts += [arrow(left + 46, 258, left + 46, 234, BLUE, "blue")]
    for place, row in enumerate((10, 45, 17, 60, 15)):
        y = 62 + 58 * place
        kin = DIGITS.target[row] == DIGITS.target[13]
        colour, marker, dashed = treat(kin)
        parts.append(picture(row, left + 246, y, colour, dashed))
        if marker == "green":
            parts.append(arrow(left + 240, y + 26, left + 84, 176, colour, marker))
        elif marker:
            parts.append(arrow(left + 82, 176, left + 238, y + 26, colour, marker, dashed))
    return "".join(parts)


def draw():
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
        for name, colour in (("blue", BLUE), ("red", RED), ("green", GREEN))
    )
    panels = (
        panel(10, "Plain loss", "pushes every other image away", lambda kin: (RED, "red", False)),
        panel(
            350,
            "Eliminate",
            "does not push the other threes",
            lambda kin: (GREY, "", True) if kin else (RED, "red", False),
        ),
        panel(690, "Attract", "pulls them closer", lambda kin: (GREEN, "green", False) if kin else (RED, "red", False)),
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1020 392" font-family="system-ui, sans-serif" role="img">'
        "<title>A contrastive loss pushes all other images away, also those of the anchor's kind. falseneg finds "
        "these false negatives and leaves them out, or treats them as positives.</title>"
        f'<defs>{markers}</defs><rect width="1020" height="392" rx="14" fill="#ffffff"/>{"".join(panels)}</svg>\n'
    )


if __name__ == "__main__":
    assert [int(DIGITS.target[row]) for row in (13, 45, 60)] == [3, 3, 3], "the threes have moved"
    Path(__file__).with_name("idea.svg").write_text(draw())
