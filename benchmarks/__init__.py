"""Measurements of mpreg-mq; each module runs by itself with ``python -m benchmarks.<name>``."""
