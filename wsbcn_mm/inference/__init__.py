"""Predict with a trained model: `load` makes a callable of a checkpoint or an exported file.

from wsbcn_mm.inference import load

model = load('work_dirs/run/iter_2400.pth')
result = model('photo.png')
"""

from .load import load

__all__ = ['load']
