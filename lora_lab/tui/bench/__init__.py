"""Benchmarks from the terminal: chosen in a form, watched while they run, compared with earlier results."""
