"""Benchmark tables: what a trained cell reaches, looked up. They judge a search and never steer it."""

from advnas.tables.table import Table

__all__ = ["Table"]
