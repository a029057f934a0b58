"""Drawings and recordings of a Debian package: a small corpus that is not generated."""
