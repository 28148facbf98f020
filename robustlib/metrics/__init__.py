"""Measures beyond accuracy."""
