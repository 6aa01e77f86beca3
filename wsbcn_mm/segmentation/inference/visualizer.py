"""The visualizer of segmentation recipes: mmseg's own, which its `MMSegInferencer` requires."""

from mmseg.registry import VISUALIZERS
from mmseg.visualization import SegLocalVisualizer

VISUALIZERS.register_module(name='RunVisualizer', module=SegLocalVisualizer, force=True)
