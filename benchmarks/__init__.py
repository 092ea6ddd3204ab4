"""Measurements of mpreg-mq: ``python -m benchmarks`` for all of them side by side; other modules run by themselves."""
