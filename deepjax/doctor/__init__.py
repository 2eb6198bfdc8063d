"""Find out why a model does not train: measure it, name what is wrong, and try the remedy."""

from deepjax.doctor.coordinates import Coordinates, coordinate_check
from deepjax.doctor.examine import examine
from deepjax.doctor.measure import measure
from deepjax.doctor.non_finite import NonFinite, hunt
from deepjax.doctor.report import Finding, Outcome, Report, Sweep
from deepjax.doctor.subject import subject

__all__ = [
    "Coordinates",
    "Finding",
    "NonFinite",
    "Outcome",
    "Report",
    "Sweep",
    "coordinate_check",
    "examine",
    "hunt",
    "measure",
    "subject",
]
