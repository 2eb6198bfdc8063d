"""Examine a model that does not train: measure it, name what is wrong, and try the remedy."""

from deepjax.doctor.examine import examine
from deepjax.doctor.report import Finding, Outcome, Report, Sweep

__all__ = ["Finding", "Outcome", "Report", "Sweep", "examine"]
