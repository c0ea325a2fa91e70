"""Benchmarks (`make bench`): always ratios to a floor in the same run, never bare times."""
