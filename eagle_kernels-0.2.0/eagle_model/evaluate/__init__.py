"""Evaluation: the benchmarks of the paper by one command. docs/evaluation.md tells the whole."""
