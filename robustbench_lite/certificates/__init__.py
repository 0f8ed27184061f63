"""Certificates: one method, one file. Adding one edits no other file."""
