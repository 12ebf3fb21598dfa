"""Networks: a timm backbone that takes images as they are, the heads, and a network that follows another."""

from falseneg.models.encoder import Encoder
from falseneg.models.heads import ProjectionHead
from falseneg.models.momentum import Momentum
from falseneg.models.text import TextEncoder

__all__ = ["Encoder", "Momentum", "ProjectionHead", "TextEncoder"]
