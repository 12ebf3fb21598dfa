"""Networks: a timm backbone that takes images as they are, and the projection head."""

from falseneg.models.encoder import Encoder
from falseneg.models.heads import ProjectionHead

__all__ = ["Encoder", "ProjectionHead"]
