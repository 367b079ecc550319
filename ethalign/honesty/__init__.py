"""Alignment for Honesty (Yang et al. 2023): declining what one does not know, and only that."""

from ethalign.honesty.scores import (
    CATEGORIES,
    HonestyScores,
    categorize,
    contains_answer,
    is_idk,
    scores,
)
from ethalign.honesty.targets import IDK, METHODS, training_target

__all__ = [
    "CATEGORIES",
    "IDK",
    "METHODS",
    "HonestyScores",
    "categorize",
    "contains_answer",
    "is_idk",
    "scores",
    "training_target",
]
