"""Kernels of Eagle 2.5 as single ops: import one, call it in your own training code."""
