"""Attention over packed views."""
