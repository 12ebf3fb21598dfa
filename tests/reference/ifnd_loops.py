"""IFND (Chen et al. 2022) as plain float64 loops: clustering, confidence, acceptance, and the losses of all levels.

Independent of the library and slow; lists of rows in, numbers or lists out.
"""

import math

from reference.loops import negatives_of, similarity


def nearest(point, centroids):
    """The first of the most similar centroids."""
    scores = [float(similarity(point, centroid)) for centroid in centroids]
    return scores.index(max(scores))


def lloyd(points, centroids, steps):
    """Spherical k-means from these centroids: assign each point, then move each centroid along the sum of its points.

    Also whether a cluster was empty on the way (its centroid stays then).
    """
    was_empty = False
    for _ in range(steps):
        members = [[] for _ in centroids]
        for point in points:
            members[nearest(point, centroids)].append(point)
        was_empty = was_empty or not all(members)
        centroids = [unit_sum(own) if own else old for own, old in zip(members, centroids, strict=True)]
    return centroids, was_empty


def unit_sum(points):
    total = [sum(float(point[d]) for point in points) for d in range(len(points[0]))]
    length = math.sqrt(sum(x * x for x in total))
    return [x / length for x in total]


def confidence(point, centroids, tau):
    """kappa = exp(s_own / tau) / sum over k of exp(s_k / tau)."""
    scores = [math.exp(float(similarity(point, centroid)) / tau) for centroid in centroids]
    return scores[nearest(point, centroids)] / sum(scores)


def pseudo_labels(clusters, confidences, share):
    """The surest images have their cluster, the others -1; of equally sure ones the first."""
    order = sorted(range(len(clusters)), key=lambda i: (-confidences[i], i))
    accepted = set(order[: round(share * len(clusters))])
    return [cluster if i in accepted else -1 for i, cluster in enumerate(clusters)]


def false_negatives(i, anchor_sample, candidate_sample, labels):
    """The negatives of anchor i with its pseudo-label, and the other negatives."""
    of_anchor = labels[anchor_sample[i]]
    same, other = [], []
    for j in negatives_of(i, anchor_sample, candidate_sample):
        of_candidate = labels[candidate_sample[j]] if candidate_sample[j] != -1 else -1
        (same if of_anchor >= 0 and of_candidate == of_anchor else other).append(j)
    return same, other


def eliminate(s_pos, s_false, s_other, tau):
    """The false negatives leave the denominator."""
    positive = (s_pos / tau).exp()
    return -(positive / (positive + sum((s / tau).exp() for s in s_other))).log()


def attract(s_pos, s_false, s_other, tau):
    """The mean over the positive and the false negatives, each over itself and the negatives outside."""
    rest = sum((s / tau).exp() for s in s_other)
    terms = [-((s / tau).exp() / ((s / tau).exp() + rest)).log() for s in [s_pos, *s_false]]
    return sum(terms) / len(terms)


def loss(form, anchors, candidates, positives, anchor_sample, candidate_sample, levels, tau):
    """The mean over anchors and levels; ``levels`` are the pseudo-labels by data-set row, ``positives`` a row each."""
    total = 0.0
    for labels in levels:
        for i in range(len(anchors)):
            false, other = false_negatives(i, anchor_sample, candidate_sample, labels)
            cosines = {j: similarity(anchors[i], candidates[j]) for j in [*false, *other]}
            s_pos = similarity(anchors[i], positives[i])
            total = total + form(s_pos, [cosines[j] for j in false], [cosines[j] for j in other], tau)
    return total / (len(anchors) * len(levels))
