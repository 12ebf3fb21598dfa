"""FNC with the support set among the positives, as plain float64 loops: as released, and on multi-crop."""

from reference.loops import similarity, top_k


def flagged_columns(queries, candidates, own, k, threshold):
    """The k best-scored rows of other images that are above the threshold; a score is the largest over the queries."""
    scores = []
    for j, candidate in enumerate(candidates):
        best = max(float(similarity(query, candidate)) for query in queries)
        scores.append(float("-inf") if j in own else best)
    return [j for j in top_k(scores, k) if scores[j] > threshold]


def released(views, tau, k, threshold):
    """The released TensorFlow code: all V views of an image are anchors, support set and positives.

    One flagged set an image, shared by its anchors; the loss of an anchor is the mean over its V - 1 siblings and the
    flagged rows of the negative log-probability, with all rows but the anchor itself in the denominator.

    Args:
        views: (B, V, D).

    Returns:
        (B * V) losses, anchor b * V + v being view v of image b, and the flagged columns of each image.
    """
    images, number, _ = views.shape
    rows = [views[b, v] for b in range(images) for v in range(number)]
    losses, masks = [], []
    for b in range(images):
        own = range(b * number, (b + 1) * number)
        masks.append(flagged_columns(views[b].detach(), [row.detach() for row in rows], own, k, threshold))
        for i in own:
            denominator = sum((similarity(rows[i], rows[j]) / tau).exp() for j in range(len(rows)) if j != i)
            positives = [j for j in own if j != i] + masks[-1]
            total = sum(((similarity(rows[i], rows[j]) / tau).exp() / denominator).log() for j in positives)
            losses.append(-total / len(positives))
    return losses, masks


def on_multi_crop(views, crops, tau, k):
    """The paper's section 4.1.2: the crops of an image are its support set and positives; main views of others negatives.

    Attraction: the mean over the other main views, the crops and the flagged rows of the negative log-probability, with
    all of these and all negatives in the denominator.

    Args:
        views: (B, V, D).
        crops: for each image a list of (D,), of whatever size they were seen in.

    Returns:
        (B * V) losses.
    """
    images, number, _ = views.shape
    rows = [views[b, v] for b in range(images) for v in range(number)]
    losses = []
    for b in range(images):
        own = range(b * number, (b + 1) * number)
        queries = [crop.detach() for crop in crops[b]]
        flagged = flagged_columns(queries, [row.detach() for row in rows], own, k, float("-inf"))
        for i in own:
            known = [similarity(rows[i], rows[j]) for j in own if j != i]
            known += [similarity(rows[i], crop) for crop in crops[b]]
            negatives = [similarity(rows[i], rows[j]) for j in range(len(rows)) if j not in own]
            denominator = sum((s / tau).exp() for s in known + negatives)
            attracted = known + [similarity(rows[i], rows[j]) for j in flagged]
            losses.append(-sum(((s / tau).exp() / denominator).log() for s in attracted) / len(attracted))
    return losses
