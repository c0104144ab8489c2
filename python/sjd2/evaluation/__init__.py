"""Quality of pictures by published measures, through the packages that are known for them: CLIP-Score, FID, GenEval; see docs/evaluation.md."""

from .clip import ClipScore
from .fid import FrechetDistance
from .geneval import GenEvalFolder, read_scores
from .run import Measures, evaluate, folder_name

__all__ = ["ClipScore", "FrechetDistance", "GenEvalFolder", "Measures", "evaluate", "folder_name", "read_scores"]
