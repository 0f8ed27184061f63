"""Corruptions: one family, one file."""
