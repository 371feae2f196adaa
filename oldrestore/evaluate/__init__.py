"""Measure restoration: the tables of README and model card.

    restoration.py   clean photos with drawn damage, restored in every way, against what they were
    detector.py      is the damage found, at the rates it has on real photos
    real.py          real old photos, by scores that need no target
    latents.py       how far latents of real old photos lie from those of drawn damage
    faces.py         portraits with and without the face stage

Every picture goes through 8 bits, as a user's would: what is damaged, what is restored, what it is
compared with.
"""

from oldrestore.evaluate.command import main
from oldrestore.evaluate.methods import ROWS
from oldrestore.evaluate.restoration import evaluate
from oldrestore.evaluate.results import Cell, Results, Timing
from oldrestore.evaluate.samples import COLUMNS, INPUTS
from oldrestore.evaluate.scores import Score

__all__ = ["COLUMNS", "INPUTS", "ROWS", "Cell", "Results", "Score", "Timing", "evaluate", "main"]
