"""The graph of nearest neighbours and its eigenvectors in plain float64: all pairs, no trick."""

import numpy as np


def whitened_cosines(points, views, ridge):
    """Cosines of x S^-1/2, with S the covariance of views around their image's mean, plus a ridge."""
    x = points - points.mean(axis=0)
    width = points.shape[1]
    spread = np.zeros((width, width))
    for image in views:
        for view in image:
            away = view - image.mean(axis=0)
            spread += np.outer(away, away) / (len(views) * len(image))
    spread += ridge * np.mean(np.diag(spread)) * np.eye(width)
    products = x @ np.linalg.inv(spread) @ x.T
    length = np.sqrt(np.diag(products))
    return products / np.outer(length, length)


def coordinates(cosines, k, steepness, number):
    """Unit rows of the leading eigenvectors but the trivial one."""
    rows = len(cosines)
    weights = np.zeros((rows, rows))
    for i in range(rows):
        others = sorted((j for j in range(rows) if j != i), key=lambda j: -cosines[i, j])[:k]
        for j in others:
            weights[i, j] = max(cosines[i, j], 0) ** steepness
    weights = weights + weights.T
    degree = weights.sum(axis=1)
    normal = weights / np.sqrt(np.outer(degree, degree))
    values, vectors = np.linalg.eigh(normal)
    leading = vectors[:, np.argsort(-values)[1 : number + 1]]
    return leading / np.linalg.norm(leading, axis=1, keepdims=True)
