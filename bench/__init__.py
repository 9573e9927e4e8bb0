"""Benchmarks: `python -m bench`; docs/performance.md says how they measure and why."""
