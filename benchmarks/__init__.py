"""Benchmarks: peers beside us in one run, medians and ratios; `python -m benchmarks.<name> --help`."""
