"""Scripted players of the real worlds."""
