"""robustbench-lite."""
