"""The papers' equations as plain float64 loops: independent of the library, slow, and meant to be read beside the papers.

Every function works on float64 tensors and adds up one pair at a time, so that autograd gives the reference gradient.
"""

import math


def similarity(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def negatives_of(i, anchor_sample, candidate_sample):
    """Columns that show another sample than anchor i; -1 is excluded from nothing."""
    return [j for j, c in enumerate(candidate_sample) if anchor_sample[i] == -1 or c != anchor_sample[i]]


def simclr(s_pos, s_neg, tau):
    """FNC, equation 1, with the positive and all negatives in the denominator."""
    numerator = (s_pos / tau).exp()
    return -(numerator / (numerator + sum((s / tau).exp() for s in s_neg))).log()


def fnc_eliminate(s_pos, s_neg, flagged, tau):
    """FNC, equation 2: the flagged negatives leave the denominator."""
    return simclr(s_pos, [s for s, f in zip(s_neg, flagged, strict=True) if not f], tau)


def fnc_attract(s_pos, s_neg, flagged, tau):
    """FNC, equation 3: the flagged negatives are positives too, and all stay in the denominator."""
    denominator = (s_pos / tau).exp() + sum((s / tau).exp() for s in s_neg)
    total = ((s_pos / tau).exp() / denominator).log()
    for s, f in zip(s_neg, flagged, strict=True):
        if f:
            total = total + ((s / tau).exp() / denominator).log()
    return -total / (1 + sum(flagged))


def ifnd_attract(s_pos, s_neg, flagged, tau):
    """IFND: the mean over {p} and F of -log e^s / (e^s + the negatives outside F)."""
    rest = sum((s / tau).exp() for s, f in zip(s_neg, flagged, strict=True) if not f)
    total = 0
    for s in [s_pos, *(s for s, f in zip(s_neg, flagged, strict=True) if f)]:
        total = total - ((s / tau).exp() / ((s / tau).exp() + rest)).log()
    return total / (1 + sum(flagged))


def glofnd_simclr(s_pos, s_neg, flagged, tau):
    """GloFND on SimCLR: the mean over the kept negatives, rescaled to the full count."""
    kept = [s for s, f in zip(s_neg, flagged, strict=True) if not f]
    mass = sum((s / tau).exp() for s in kept) / len(kept) * len(s_neg)
    return -((s_pos / tau).exp() / ((s_pos / tau).exp() + mass)).log()


def supcon_out(s_same, s_other, tau):
    """SupCon, the "out" form: -1/|P| sum over p of log(e^{s_p/t} / sum over all but self)."""
    denominator = sum((s / tau).exp() for s in [*s_same, *s_other])
    return -sum(((s / tau).exp() / denominator).log() for s in s_same) / len(s_same)


def objective(name, s_pos, s_neg, flagged, tau, positive, negative, renormalise):
    """One anchor's loss for any strategy, with P known positives. Names: InfoNCE, OwnDenominators, Decoupled."""
    weights = [negative if f else 1.0 for f in flagged]
    mass = sum((w * (s / tau).exp() for s, w in zip(s_neg, weights, strict=True)), start=0.0 * tau)
    if renormalise and sum(weights) > 0:
        mass = mass * (len(s_neg) / sum(weights))
    terms = [(s, 1.0) for s in s_pos] + [(s, positive) for s, f in zip(s_neg, flagged, strict=True) if f and positive]
    count = sum(w for _, w in terms)
    if name == "OwnDenominators":
        return sum(-w * ((s / tau).exp() / ((s / tau).exp() + mass)).log() for s, w in terms) / count
    attraction = sum(w * s / tau for s, w in terms) / count
    if name == "Decoupled":
        return (mass.log() if sum(weights) > 0 else 0.0) - attraction
    return (sum((s / tau).exp() for s in s_pos) + mass).log() - attraction


def top_k(scores, k):
    """Columns of the k highest scores; of equals the lower column."""
    ranked = sorted((j for j, s in enumerate(scores) if s > -math.inf), key=lambda j: (-scores[j], j))
    return sorted(ranked[:k])
