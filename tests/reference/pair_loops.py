"""Image-text losses as plain float64 loops over pairs, from the equations; state in dictionaries.

CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023, equation 1), bimodal SogCLR and iSogCLR (Qiu et al. 2023), FastCLIP v0 to v3
(Wei et al. 2024, section 4), bimodal GloFND. `sim[i][j]` is the cosine of image i and text j; `kept[i][j]` says whether text j
stays a negative of image i, and `kept_back[j][i]` whether image i stays one of text j.
"""

import math

import torch


def all_kept(size):
    return [[True] * size for _ in range(size)]


def clip(sim, tau, kept=None, kept_back=None):
    """The mean over both directions of the cross-entropy of the own pair."""
    size = len(sim)
    kept, kept_back, total = kept or all_kept(size), kept_back or all_kept(size), 0.0
    for i in range(size):
        texts = [sim[i][j] / tau for j in range(size) if j == i or kept[i][j]]
        images = [sim[j][i] / tau for j in range(size) if j == i or kept_back[i][j]]
        total = total - 2 * sim[i][i] / tau + torch.stack(texts).logsumexp(0) + torch.stack(images).logsumexp(0)
    return total / (2 * size)


def siglip(sim, tau, bias):
    """Minus the mean over images of the sum over texts of log sigmoid(z (s / tau + b)), z = 1 for the own pair, else -1."""
    size, total = len(sim), 0.0
    for i in range(size):
        for j in range(size):
            sign = 1.0 if i == j else -1.0
            total = total + (1 + (-sign * (sim[i][j] / tau + bias)).exp()).log()
    return total / size


def relative_mean(row, own, kept, tau, own_pair=False):
    """g_i: the mean over the negatives that are kept of e^((s_ij - s_ii) / tau); iSogCLR counts the own pair, too."""
    terms = [((row[j] - row[own]) / tau).exp() for j in range(len(row)) if j != own and kept[j]]
    if own_pair:
        terms.append(((row[own] - row[own]) / tau).exp())
    return sum(terms) / len(terms)


def global_step(u, rows, ids, kept, taus, gamma, epsilon=1e-14, own_pair=False):
    """One direction of a batch: moves u; returns g with gradient and the updated u of each anchor."""
    means = [relative_mean(rows[i], i, kept[i], taus[i], own_pair) for i in range(len(rows))]
    for who, g in zip(ids, means, strict=True):
        value = float(g.detach())
        u[who] = (1 - gamma) * u[who] + gamma * value if who in u else value
    return means, [epsilon + u[who] for who in ids]


def fastclip(version, us, sim, ids, taus, gamma, rho=0.0, kept=None, kept_back=None, own_pair=False):
    """What FastCLIP back-propagates, and its value, over both directions: (terms with the gradient, value).

    Args:
        version: "v0" leaves out tau; "v1" (SogCLR) has it; "v2" (iSogCLR) adds rho tau for each; "v3" likewise for the one
            tau. The gradient of v1 to v3 is that of tau (log g + rho), with 1 / g replaced by 1 / (epsilon + u).
        us: two dictionaries, of the images and of the texts.
        taus: of each image and of each text, two lists.
    """
    size, terms, value = len(sim), 0.0, 0.0
    kept, kept_back = kept or all_kept(size), kept_back or all_kept(size)
    transposed = [[sim[j][i] for j in range(size)] for i in range(size)]
    for u, rows, mask, tau in ((us[0], sim, kept, taus[0]), (us[1], transposed, kept_back, taus[1])):
        means, divisors = global_step(u, rows, ids, mask, tau, gamma, own_pair=own_pair)
        for g, divisor, t in zip(means, divisors, tau, strict=True):
            fraction = g / divisor
            if version == "v0":
                terms, value = terms + fraction, value + math.log(divisor)
                continue
            # d(tau log g): log g stands for the derivative by tau, g / u for that by everything else.
            terms = terms + t * (math.log(divisor) + rho) + t * (fraction - fraction.detach())
            value = value + float(t.detach()) * (math.log(divisor) + rho)
    return terms / (2 * size), value / (2 * size)


def v2_tau_gradient(row, own, kept, tau, u, rho, epsilon=1e-14):
    """FastCLIP-v2's own line: log(u + eps) + rho - mean_j[e^d d] / (u + eps), d = (s_ij - s_ii) / tau."""
    d = [float((row[j] - row[own]) / tau) for j in range(len(row)) if j != own and kept[j]]
    return math.log(u + epsilon) + rho - sum(math.exp(x) * x for x in d) / len(d) / (u + epsilon)


def adam(value, gradient, state, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """One step of Adam (Kingma and Ba 2015, algorithm 1)."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * gradient
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * gradient**2
    m, v = state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"])
    return value - rate * m / (math.sqrt(v) + epsilon)


def glofnd(thresholds, states, rows, ids, alpha, rate=0.05):
    """One direction of bimodal GloFND: each threshold follows its gradient (Adam .9 / .98), then masks: which are kept."""
    kept = []
    for i, who in enumerate(ids):
        negatives = [float(rows[i][j]) for j in range(len(rows)) if j != i]
        old = thresholds.get(who, 1.0)
        gradient = alpha - sum(s > old for s in negatives) / len(negatives)
        moved = adam(old, gradient, states.setdefault(who, {}), rate, beta2=0.98)
        thresholds[who] = min(max(moved, -1.0), 1.0)
        kept.append([float(rows[i][j]) <= thresholds[who] for j in range(len(rows))])
    return kept
