"""Training objectives (paper section 3.3)."""
