"""Data of the downstream tasks, one module per kind of sample."""
