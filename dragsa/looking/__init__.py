"""Looking inside an edit: its passes as they happen, and pictures of what they computed."""

from dragsa.looking.folder import Edited, frames_of, write
from dragsa.looking.inside import (
    AttentionFrom,
    DistanceMap,
    Moment,
    attention_from,
    distance_map,
    frames,
    predicted,
    trajectory,
)
from dragsa.looking.passes import Pass, alike, sentence, watched

__all__ = ["AttentionFrom", "DistanceMap", "Edited", "Moment", "Pass", "alike", "attention_from", "distance_map"]
__all__ += ["frames", "frames_of", "predicted", "sentence", "trajectory", "watched", "write"]
