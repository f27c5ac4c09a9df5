"""Training losses: matching of queries with segments, and what matched and unmatched queries are taught."""

from zsseg.losses.matching import Match
from zsseg.losses.set_criterion import SetCriterion, SetCriterionOutput

__all__ = ["Match", "SetCriterion", "SetCriterionOutput"]
