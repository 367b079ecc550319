"""Alignment for Honesty (Yang et al. 2023): declining what one does not know, and only that."""

from ethalign.honesty.scores import CATEGORIES as CATEGORIES
from ethalign.honesty.scores import HonestyScores as HonestyScores
from ethalign.honesty.scores import categorize as categorize
from ethalign.honesty.scores import contains_answer as contains_answer
from ethalign.honesty.scores import is_idk as is_idk
from ethalign.honesty.scores import scores as scores
from ethalign.honesty.targets import IDK as IDK
from ethalign.honesty.targets import METHODS as METHODS
from ethalign.honesty.targets import training_target as training_target
