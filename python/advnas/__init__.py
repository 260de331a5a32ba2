"""advnas: search a cell with one-path estimators, retrain it, report it.

The loop is in :mod:`advnas.search`, its settings in :mod:`advnas.config`, the command line in :mod:`advnas.cli`.
"""
