"""MoCo as plain float64 loops: the ring of keys, the momentum, and the losses one pair at a time."""

import math

from reference.loops import similarity


def ring(length, steps):
    """The places of a ring after these steps, each a list of entries; None where nothing has been written."""
    places, pointer = [None] * length, 0
    for entries in steps:
        for entry in entries:
            places[pointer] = entry
            pointer = (pointer + 1) % length
    return places


def momentum_at(base, step, total, cosine):
    """BYOL, section 3.3: 1 - (1 - base) * (cos(pi * k / K) + 1) / 2."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total) + 1) / 2 if cosine else base


def moco(query, key, queue, tau):
    """MoCo, equation 1: -log e^(q k+ / tau) / (e^(q k+ / tau) + the sum over the queue)."""
    positive = (similarity(query, key) / tau).exp()
    return -(positive / (positive + sum((similarity(query, other) / tau).exp() for other in queue))).log()


def moco_v3(first, second, first_keys, second_keys, tau):
    """MoCo v3, algorithm 1, without its factor of 2 tau: ctr(q1, k2) + ctr(q2, k1), each a mean over the batch."""
    total = 0
    for queries, keys in ((first, second_keys), (second, first_keys)):
        for i, query in enumerate(queries):
            logits = [similarity(query, key) / tau for key in keys]
            total = total + (sum(logit.exp() for logit in logits).log() - logits[i]) / len(queries)
    return total


def parted(s_pos, negatives, tau, positive, negative, renormalise):
    """InfoNCE of one anchor whose negatives are (cosine, flagged, whether it is in the denominator).

    A flagged negative is attracted wherever it is, and pushed away (with weight ``negative``) only in the denominator.
    """
    pushed = [(s, negative if flagged else 1.0) for s, flagged, inside in negatives if inside]
    mass = sum((w * (s / tau).exp() for s, w in pushed), start=0.0 * tau)
    weight = sum(w for _, w in pushed)
    if renormalise and weight > 0:
        mass = mass * (len(pushed) / weight)
    attracted = [s for s, flagged, _ in negatives if flagged]
    total = sum(s / tau for s in s_pos) + sum(positive * s / tau for s in attracted)
    return (sum((s / tau).exp() for s in s_pos) + mass).log() - total / (len(s_pos) + positive * len(attracted))
