"""Whole steps and sequences on the host beside peers."""
