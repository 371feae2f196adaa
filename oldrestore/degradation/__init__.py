"""Synthetic damage: a clean photo becomes an old one, with the exact mask of what was destroyed.

`sample_degradation` draws a `Degradation`, a value that can be stored and replayed; `degrade`
applies it to a photo without chance.
"""

from oldrestore.degradation.chain import Degradation, Degraded, degrade
from oldrestore.degradation.folder import FolderReport, degrade_folder
from oldrestore.degradation.sampling import sample_degradation
from oldrestore.degradation.settings import DegradationSettings
from oldrestore.degradation.textures import TextureSet

__all__ = [
    "Degradation",
    "DegradationSettings",
    "Degraded",
    "FolderReport",
    "TextureSet",
    "degrade",
    "degrade_folder",
    "sample_degradation",
]
