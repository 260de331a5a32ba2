"""Benchmark tables: what a trained cell reaches, looked up. They judge a search and never steer it."""
