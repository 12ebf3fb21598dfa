"""Average precision of boxes against the definition of the VOC 2007 kit, and COCO's."""

import random

import pytest
import torch

from falseneg.evaluation.detection_metrics import (
    THRESHOLDS,
    Boxes,
    Detected,
    coco_average_precisions,
    voc_average_precisions,
)


def boxes(*rows):
    """(image, x, y, x, y, kind)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Boxes(table[:, 0].long(), table[:, 1:5], table[:, 5].long())


def test_average_precision_of_a_hand_computed_case():
    """Four objects that count and a difficult one, found in the order right, wrong (its second time), not counted, right, wrong.

    Precision 1, 1/2, 2/3, 2/4 at recalls 1/4, 1/4, 2/4, 2/4: the recalls 0, .1, .2 have 1, .3 to .5 have 2/3, the rest 0.
    """
    truth = boxes(
        (0, 0, 0, 10, 10, 1), (0, 20, 20, 30, 30, 1), (1, 0, 0, 10, 10, 1), (1, 20, 20, 30, 30, 1), (2, 0, 0, 9, 9, 1)
    )
    difficult = torch.tensor([False, True, False, False, False])
    found = boxes(
        (0, 0, 0, 10, 10, 1), (0, 1, 0, 10, 10, 1), (0, 20, 20, 30, 30, 1), (1, 0, 0, 10, 5, 1), (3, 0, 0, 10, 10, 1)
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    given = Detected(found, scores, truth, difficult)
    figures = voc_average_precisions(given, (0.5, 0.55))[1]
    assert figures[0] == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)  # an overlap of exactly .5 is enough, as in the kit
    assert figures[1] == pytest.approx(3 * 1 / 11)


def judged(given, kind, threshold):
    """The kit's VOCevaldet.m line by line, with its 1-based boxes that include their last pixel."""
    objects = {}
    for image, box, each, hard in zip(*(part.tolist() for part in (*given.truth, given.difficult)), strict=True):
        if each == kind:
            x, y, right, bottom = box
            objects.setdefault(image, []).append({"box": (x + 1, y + 1, right, bottom), "hard": hard, "found": False})
    positives = sum(not each["hard"] for listed in objects.values() for each in listed)
    rows = [row for row in range(len(given.scores)) if int(given.found.kind[row]) == kind]
    right, wrong, curve = 0, 0, []
    for row in sorted(rows, key=lambda row: -float(given.scores[row])):
        x, y, x2, y2 = given.found.box[row].tolist()
        x, y = x + 1, y + 1
        best, most = None, -1.0
        for each in objects.get(int(given.found.image[row]), []):
            left, top, last, low = each["box"]
            width, height = min(x2, last) - max(x, left) + 1, min(y2, low) - max(y, top) + 1
            if width > 0 and height > 0:
                union = (x2 - x + 1) * (y2 - y + 1) + (last - left + 1) * (low - top + 1) - width * height
                if width * height / union > most:
                    best, most = each, width * height / union
        if most < threshold:
            wrong += 1
        elif not best["hard"]:
            right, wrong = (right, wrong + 1) if best["found"] else (right + 1, wrong)
            best["found"] = True
        if right + wrong:  # before the first that counts there is no precision
            curve.append((right, right / (right + wrong)))
    total = 0.0
    for tenth in range(11):
        total += max((precision for hits, precision in curve if 10 * hits >= tenth * positives), default=0.0) / 11
    return total if positives else None


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_by_a_loop(seed):
    draw = random.Random(seed)

    def box():
        x, y = draw.randrange(12), draw.randrange(12)
        return x, y, x + draw.randrange(2, 14), y + draw.randrange(2, 14)

    truth = [(draw.randrange(8), *box(), draw.randrange(1, 4)) for _ in range(60)]
    found = [(draw.randrange(10), *box(), draw.randrange(1, 5)) for _ in range(150)]
    for image, x, y, right, bottom, kind in truth[::2]:
        found += [(image, max(0, x - draw.randrange(2)), y, right + draw.randrange(3), bottom, kind)] * 2
    scores = torch.tensor([draw.randrange(40) / 40 for _ in found])  # many are equal
    difficult = torch.tensor([draw.random() < 0.3 for _ in truth])
    given = Detected(boxes(*found), scores, boxes(*truth), difficult)
    figures = voc_average_precisions(given)
    assert len(figures) == 3
    for kind, values in figures.items():
        assert values == pytest.approx([judged(given, kind, threshold) for threshold in THRESHOLDS], abs=1e-12)


def test_thresholds_are_those_of_the_tables():
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_a_class_of_difficult_objects_only_has_no_figure():
    given = Detected(
        boxes(), torch.zeros(0), boxes((0, 0, 0, 9, 9, 1), (0, 0, 0, 9, 9, 2)), torch.tensor([True, False])
    )
    assert voc_average_precisions(given) == {2: [0.0] * len(THRESHOLDS)}
    assert set(coco_average_precisions(given, 1).values()) == {0.0}


def test_cocos_average_precision():
    """Of two objects the first is found at an overlap of .8: precision 1 up to a recall of .5, on 51 of 101 recalls."""
    truth = boxes((0, 0, 0, 10, 10, 1), (1, 0, 0, 10, 10, 1), (1, 20, 20, 40, 40, 1))
    found = boxes((0, 0, 0, 10, 8, 1), (1, 20, 20, 40, 40, 1))  # the second is difficult: neither right nor wrong
    given = Detected(found, torch.tensor([0.5, 0.9]), truth, torch.tensor([False, False, True]))
    figures = coco_average_precisions(given, 3)
    # At .8 itself the overlap is enough; the library compares with .8 - 1e-10.
    assert figures == pytest.approx({"AP50": 51 / 101, "AP75": 51 / 101, "AP": 7 / 10 * 51 / 101})
