"""The baselines' equations as plain float64 loops, one pair at a time, to be read beside their papers."""


def debiased(s_pos, s_neg, weights, tau, prior):
    """Chuang 2020, equation 8, with W negatives by weight: W max((mean of negatives - prior e+) / (1 - prior), e^(-1/t))."""
    total = sum(weights)
    mean = sum(w * (s / tau).exp() for s, w in zip(s_neg, weights, strict=True)) / total
    false = sum((s / tau).exp() for s in s_pos) / len(s_pos)
    estimate = (mean - prior * false) / (1 - prior)
    least = (-1 / tau).exp()
    return total * (estimate if float(estimate.detach()) > float(least.detach()) else least)


def hard_negatives(s_pos, s_neg, weights, tau, prior, beta):
    """Robinson 2021, section 3: both means are taken under densities that are e^(beta s/t) times as high."""
    total = sum(weights)
    weighted = [w * (beta * s / tau).exp() for s, w in zip(s_neg, weights, strict=True)]
    mean = sum(w * (s / tau).exp() for s, w in zip(s_neg, weighted, strict=True)) / sum(weighted)
    of_positives = [(beta * s / tau).exp() for s in s_pos]
    false = sum(w * (s / tau).exp() for s, w in zip(s_pos, of_positives, strict=True)) / sum(of_positives)
    estimate = (mean - prior * false) / (1 - prior)
    least = (-1 / tau).exp()
    return total * (estimate if float(estimate.detach()) > float(least.detach()) else least)


def loss(mass, s_pos, s_neg, flagged, tau, positive, negative, renormalise):
    """InfoNCE with another mass of the negatives: `mass(s_pos, s_neg, weights, tau)`."""
    weights = [negative if f else 1.0 for f in flagged]
    pushed = 0.0 * tau
    if sum(weights) > 0:
        pushed = mass(s_pos, s_neg, weights, tau)
        if renormalise:
            pushed = pushed * (len(s_neg) / sum(weights))
    terms = [(s, 1.0) for s in s_pos] + [(s, positive) for s, f in zip(s_neg, flagged, strict=True) if f and positive]
    attraction = sum(w * s / tau for s, w in terms) / sum(w for _, w in terms)
    return (sum((s / tau).exp() for s in s_pos) + pushed).log() - attraction
