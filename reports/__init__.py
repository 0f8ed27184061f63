"""Reports: what is written from a finished run. One format, one file."""
