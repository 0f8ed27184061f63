"""Pass or fail for CI: rules on a run's figures, decided with their uncertainty, and never passed for want of evidence."""
