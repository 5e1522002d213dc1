"""Merging by subspaces: what adapters share, what each has to itself, and directions made orthogonal."""
