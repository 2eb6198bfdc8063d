"""Examine a model that does not train: measure it, name what is wrong, and try the remedy."""

from deepjax.doctor.non_finite import NonFinite, hunt

__all__ = ["NonFinite", "hunt"]
