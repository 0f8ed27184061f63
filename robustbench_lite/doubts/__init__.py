"""The checks that a number has to stand: one file a question, each registered by `diagnostics.diagnostic`."""
