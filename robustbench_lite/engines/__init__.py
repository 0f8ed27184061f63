"""Engines: where an evaluation runs."""
