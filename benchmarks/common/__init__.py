"""Modules that two or more of the benchmarks use."""
