"""A small tree in the form of PASCAL VOC for detection: coloured shapes on noise, with their boxes."""

import numpy as np
from PIL import Image
from published_trees import lines

SPLITS = {"VOC2007": {"trainval": "00", "test": "01"}, "VOC2012": {"trainval": "2008_00"}}
COLOURS = {"aeroplane": (230, 40, 40), "car": (40, 220, 40), "tvmonitor": (50, 50, 230)}


def shapes(rng, side, most):
    """A picture of one to ``most`` filled squares that do not touch, and (class, first and last pixel from 1, truncated)."""
    width = side + side // 4
    picture = rng.integers(60, 196, (side, width, 3), dtype=np.uint8)
    taken, objects = np.zeros((side, width), bool), []
    for _ in range(int(rng.integers(1, most + 1))):
        name = str(rng.choice(list(COLOURS)))
        size = int(rng.integers(side // 4, side // 2))
        left, top = int(rng.integers(0, width - size + 1)), int(rng.integers(0, side - size + 1))
        if taken[top : top + size, left : left + size].any():
            continue
        taken[max(0, top - 2) : top + size + 2, max(0, left - 2) : left + size + 2] = True
        picture[top : top + size, left : left + size] = COLOURS[name]
        edge = left == 0 or top == 0 or left + size == width or top + size == side
        objects.append((name, (left + 1, top + 1, left + size, top + size), edge))
    return picture, objects


def annotation(folder, name, shape, objects):
    """The text of an annotation file.

    Args:
        folder: VOC2007 or VOC2012.
        name: of the picture, without its extension.
        shape: its height and width.
        objects: (class, (xmin, ymin, xmax, ymax), truncated, difficult).
    """
    text = f"<annotation>\n\t<folder>{folder}</folder>\n\t<filename>{name}.jpg</filename>\n"
    text += "\t<source><database>The VOC2007 Database</database><image>flickr</image></source>\n"
    text += f"\t<size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>\n\t<segmented>0</segmented>\n"
    for kind, box, truncated, difficult in objects:
        corners = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        text += f"\t<object><name>{kind}</name><pose>Unspecified</pose><truncated>{int(truncated)}</truncated>"
        text += f"<difficult>{int(difficult)}</difficult><bndbox>{corners}</bndbox>"
        text += (
            "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        )
        text += "</object>\n"
    return text + "</annotation>"


def write_voc(root, images, side=48, most=3, seed=0):
    """The three splits, each of that many pictures; every tenth object is difficult, and one picture is grey."""
    rng, number = np.random.default_rng(seed), 0
    for year, splits in SPLITS.items():
        base = root / "VOCdevkit" / year
        (base / "JPEGImages").mkdir(parents=True, exist_ok=True)
        for split, prefix in splits.items():
            names = []
            for index in range(images):
                names.append(f"{prefix}{index:04d}")
                picture, found = shapes(rng, side, most)
                listed = []
                for name, box, truncated in found:
                    number += 1
                    listed.append((name, box, truncated, number % 10 == 0))
                Image.fromarray(picture).save(base / "JPEGImages" / f"{names[-1]}.jpg", quality=95, subsampling=0)
                lines(base / "Annotations" / f"{names[-1]}.xml", [annotation(year, names[-1], picture.shape, listed)])
            lines(base / "ImageSets/Main" / f"{split}.txt", names)
    grey = root / "VOCdevkit/VOC2012/JPEGImages/2008_000000.jpg"
    Image.open(grey).convert("L").save(grey)
    return root
