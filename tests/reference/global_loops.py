"""GloFND, SogCLR and iSogCLR as plain float64 loops: one sample, one pair at a time, state in dictionaries.

Independent of the library, slow, and meant to be read beside the papers. A batch is a list of anchors: `samples` says
whom each shows (its views are several anchors), `negatives` holds the cosines of each with its negatives.
"""

import math

import torch


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def views_of(samples):
    """The anchors of each sample."""
    return {sample: [i for i, s in enumerate(samples) if s == sample] for sample in dict.fromkeys(samples)}


def share_above(negatives, threshold):
    return sum(float(s) > threshold for s in negatives) / len(negatives)


def subgradient_step(threshold, gradient, state, rate):
    """The paper's step; the projection is in `glofnd`."""
    return threshold - rate * gradient


def adam_step(threshold, gradient, state, rate, beta1=0.9, beta2=0.98, epsilon=1e-8):
    """The released code's step, with a bias correction that counts this sample's own updates."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * gradient
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * gradient**2
    m, v = state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"])
    return threshold - rate * m / (math.sqrt(v) + epsilon)


def glofnd(thresholds, states, samples, negatives, alpha, step, initial=1.0):
    """One batch of GloFND: update each sample's threshold, then flag with the new ones. Changes the dictionaries."""
    for sample, anchors in views_of(samples).items():
        threshold = thresholds.get(sample, initial)
        gradient = alpha - mean(share_above(negatives[i], threshold) for i in anchors)
        moved = step(threshold, gradient, states.setdefault(sample, {}))
        thresholds[sample] = min(max(moved, -1.0), 1.0)
    return [[float(s) > thresholds[sample] for s in row] for sample, row in zip(samples, negatives, strict=True)]


def kept_mean(negatives, flagged, tau):
    """g_i: the mean over the negatives that are kept."""
    return mean((s / tau).exp() for s, f in zip(negatives, flagged, strict=True) if not f)


def sogclr(u, samples, positives, negatives, flagged, tau, gamma, epsilon=1e-14, shared=False):
    """One batch of SogCLR. Changes u; returns the losses, and terms with the gradient.

    As the released programs (SogCLR, iSogCLR, LibAUC, GloFND) do it: each view v has u_v = (1 - gamma) u + gamma g_v, and
    each of its n kept negatives the weight e^(s/tau) / (n u_v), held fixed, in front of its cosine. The mean of the
    views' u_v is stored. With ``shared`` as GloFND's Algorithm 1: one u of the sample in the place of each u_v.
    """
    kept = [
        [s for s, f in zip(row, flags, strict=True) if not f] for row, flags in zip(negatives, flagged, strict=True)
    ]
    u_of = []
    for sample, row in zip(samples, kept, strict=True):
        g = sum(math.exp(float(s) / tau) for s in row) / len(row)
        u_of.append((1 - gamma) * u[sample] + gamma * g if sample in u else g)
    for sample, anchors in views_of(samples).items():
        u[sample] = sum(u_of[v] for v in anchors) / len(anchors)
    values, terms = [], []
    for v, (sample, row) in enumerate(zip(samples, kept, strict=True)):
        divisor = epsilon + (u[sample] if shared else u_of[v])
        values.append(tau * math.log(divisor) - positives[v])
        terms.append(sum(math.exp(float(s) / tau) / divisor * s for s in row) / len(row) - positives[v])
    return torch.stack(values), torch.stack(terms)


def isogclr_gradient(negatives, tau, u, rho, epsilon=1e-14):
    """d/d tau of tau * log(epsilon + u) + rho * tau, with the derivative of g estimated on this batch, by hand."""
    of_g = mean(math.exp(float(s) / tau) * -float(s) / tau**2 for s in negatives)
    return math.log(epsilon + u) + rho + tau * of_g / (epsilon + u)


def isogclr(taus, momenta, samples, gradients, rate, of_new, clip, bounds):
    """One update of each sample's temperature: mean over the views, clip, average with the past, step, bounds.

    ``of_new`` is the weight of the new gradient in that average (the authors' beta). Changes the dictionaries.
    """
    for sample, anchors in views_of(samples).items():
        gradient = sum(gradients[i] for i in anchors) / len(anchors)
        gradient = -clip if gradient < -clip else clip if gradient > clip else gradient
        momenta[sample] = (1 - of_new) * momenta.get(sample, 0.0) + of_new * gradient
        taus[sample] = min(max(taus[sample] - rate * momenta[sample], bounds[0]), bounds[1])


def at_first_sight(s_pos, s_neg, flagged, tau, positive, negative, renormalise, rho, epsilon):
    """One anchor's loss with the gradient of a sample that was never seen before, u being its own g.

    With any strategy and several known positives; ``renormalise`` has nothing to do with a mean.
    """
    weights = [negative if f else 1.0 for f in flagged]
    terms = [(s, 1.0) for s in s_pos] + [(s, positive) for s, f in zip(s_neg, flagged, strict=True) if f]
    loss = -sum(w * s for s, w in terms) / sum(w for _, w in terms) + rho * tau
    if sum(weights) == 0:
        return loss
    g = sum(w * (s / tau).exp() for s, w in zip(s_neg, weights, strict=True)) / sum(weights)
    return loss + tau * (epsilon + g).log()
