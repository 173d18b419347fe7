"""Benchmarks of the operators and networks against their peers; see README.md."""
