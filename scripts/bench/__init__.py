"""Measurements of the benchmark scripts: training runs, timing, and the peers they are compared with."""
