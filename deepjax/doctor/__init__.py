"""Examine a model that does not train: measure it, name what is wrong, and try the remedy."""

from deepjax.doctor.coordinates import Coordinates, check_coordinates
from deepjax.doctor.non_finite import NonFinite, hunt

__all__ = ["Coordinates", "NonFinite", "check_coordinates", "hunt"]
