"""Examine a model that does not train: measure it, name what is wrong, and try the remedy."""
