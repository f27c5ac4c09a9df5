"""Pictures of segmentations."""

from zsseg.visualization.overlay import draw_comparison, draw_panoptic, draw_semantic

__all__ = ["draw_comparison", "draw_panoptic", "draw_semantic"]
