"""Losses in which each pair has weights of its own, as plain float64 loops.

A negative is (s, a, w, restores): its cosine, its weight among the positives, its weight among the negatives, and whether
what that takes from the weight of the negatives is given back to the others.
"""

from reference import baseline_loops


def rescaled(mass, negatives):
    """The mass for the weight of the negatives with what is given back."""
    weight = sum(w for _, _, w, _ in negatives)
    return mass * ((weight + sum(1 - w for _, _, w, restores in negatives if restores)) / weight)


def info_nce(s_pos, negatives, tau, mass):
    """The known positives in one denominator with the mass of the negatives; the mean over all positives in front."""
    denominator = sum((s / tau).exp() for s in s_pos) + mass
    return denominator.log() - attraction(s_pos, negatives) / tau


def attraction(s_pos, negatives):
    total, number = sum(s_pos), len(s_pos)
    for s, a, _, _ in negatives:
        total, number = total + a * s, number + a
    return total / number


def loss(name, s_pos, negatives, tau):
    """One anchor's loss, with the options that the catalogue has."""
    weights = [w for _, _, w, _ in negatives]
    nothing = sum(weights) == 0
    plain = 0.0 * tau
    for s, _, w, _ in negatives:
        plain = plain + w * (s / tau).exp()
    mass = plain if nothing else rescaled(plain, negatives)
    if name == "InfoNCE":
        return info_nce(s_pos, negatives, tau, mass)
    if name == "OwnDenominators":
        total, number = 0.0, 0.0
        for s, a in [*((s, 1) for s in s_pos), *((s, a) for s, a, _, _ in negatives)]:
            total, number = total - a * ((s / tau).exp() / ((s / tau).exp() + mass)).log(), number + a
        return total / number
    if name == "Decoupled":
        return (0.0 if nothing else mass.log()) - attraction(s_pos, negatives) / tau
    if name == "GlobalContrastive":  # a mean has no count to be rescaled to
        pushed = 0.0 if nothing else tau * (0.5 + plain / sum(weights)).log()
        return pushed + 0.3 * tau - attraction(s_pos, negatives)
    if nothing:
        return info_nce(s_pos, negatives, tau, mass)
    cosines = [s for s, *_ in negatives]
    if name == "Debiased":
        mass = baseline_loops.debiased(s_pos, cosines, weights, tau, prior=0.1)
    else:
        mass = baseline_loops.hard_negatives(s_pos, cosines, weights, tau, prior=0.1, beta=1.5)
    return info_nce(s_pos, negatives, tau, rescaled(mass, negatives))
