"""Automatic differential counts of white blood cells from smear slides."""

__version__ = "0.1.0"
