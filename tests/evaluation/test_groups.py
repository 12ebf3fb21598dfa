import math
from itertools import combinations

import pytest
import torch

from falseneg.evaluation import group_figures


def by_loops(groups, labels):
    """Every image and every pair of images, one at a time."""
    rows = range(len(groups))
    inside = [row for row in rows if groups[row] >= 0 and labels[row] >= 0]
    same_group = same_class = both = 0
    for one, other in combinations([row for row in rows if labels[row] >= 0], 2):
        in_group = groups[one] == groups[other] >= 0
        same_group += in_group
        same_class += labels[one] == labels[other]
        both += in_group and labels[one] == labels[other]
    majority = 0
    for group in {groups[row] for row in inside}:
        members = [labels[row] for row in inside if groups[row] == group]
        majority += max(members.count(label) for label in members)

    def entropy(values):
        shares = [values.count(value) / len(values) for value in set(values)]
        return -sum(share * math.log(share) for share in shares)

    of_groups, of_classes = [groups[row] for row in inside], [labels[row] for row in inside]
    mutual = entropy(of_groups) + entropy(of_classes) - entropy(list(zip(of_groups, of_classes, strict=True)))
    return {
        "purity": majority / len(inside),
        "nmi": mutual / ((entropy(of_groups) + entropy(of_classes)) / 2),
        "precision": both / same_group,
        "recall": both / same_class,
    }


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("without_group", "without_label"), [(0.0, 0.0), (0.4, 0.0), (0.3, 0.3)])
def test_equals_plain_loops(dtype, without_group, without_label):
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(7, (60,), generator=generator) * 3  # with gaps between the numbers
    labels = torch.where(torch.rand(60, generator=generator) < 0.6, groups % 5, torch.randint(5, (60,)))
    groups[torch.rand(60, generator=generator) < without_group] = -1
    labels[torch.rand(60, generator=generator) < without_label] = -1
    figures = group_figures(groups.to(dtype), labels)
    expected = by_loops(groups.tolist(), labels.tolist())
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    sizes = [groups.tolist().count(group) for group in set(groups.tolist()) - {-1}]
    assert figures["groups"] == len(sizes) and figures["assigned"] == pytest.approx(sum(sizes) / 60)
    assert (figures["largest"], figures["smallest"]) == (max(sizes), min(sizes))
    assert 0.3 < figures["purity"] < 1 and 0 < figures["recall"] < 1


def test_perfect_groups_and_a_single_one():
    labels = torch.arange(20) % 4
    perfect = group_figures(labels + 5, labels)
    assert [perfect[key] for key in ("purity", "precision", "recall")] == [1, 1, 1]
    assert perfect["nmi"] == pytest.approx(1)
    single = group_figures(torch.zeros(20, dtype=torch.int64), labels)
    assert (single["purity"], single["recall"]) == (0.25, 1)
    assert single["precision"] == pytest.approx(4 / 19) and single["nmi"] == pytest.approx(0)


def test_without_labels_there_are_only_sizes():
    figures = group_figures(torch.tensor([2, 2, -1, 0]))
    assert figures == {"groups": 2, "largest": 2, "smallest": 1, "assigned": 0.75}


def test_what_has_no_denominator_is_undefined():
    nothing = group_figures(torch.full((4,), -1), torch.tensor([0, 0, 1, 1]))
    undefined = ("largest", "smallest", "purity", "nmi", "precision")
    assert nothing == {"groups": 0, "assigned": 0, "recall": 0, **dict.fromkeys(undefined)}
    alone = group_figures(torch.arange(3), torch.arange(3))
    assert alone["purity"] == 1 and alone["precision"] is None and alone["recall"] is None


def test_counts_of_a_large_data_set_do_not_overflow():
    figures = group_figures(torch.zeros(3_000_000, dtype=torch.int32), torch.zeros(3_000_000, dtype=torch.int64))
    assert figures["precision"] == figures["recall"] == 1
