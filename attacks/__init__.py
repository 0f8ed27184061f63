"""Attacks: one attack, one file. Adding one edits no other file."""
