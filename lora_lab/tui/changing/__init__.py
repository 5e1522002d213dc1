"""The form that merges, unmerges, swaps and verifies models, and what came of it."""
