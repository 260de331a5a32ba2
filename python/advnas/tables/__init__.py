"""Benchmark tables: what a trained cell reaches, looked up. They judge a search and never steer it."""

from advnas.tables.benchmark import NasBench201, NatsSize, NatsTopology, open_benchmark
from advnas.tables.table import Table

__all__ = ["NasBench201", "NatsSize", "NatsTopology", "Table", "open_benchmark"]
