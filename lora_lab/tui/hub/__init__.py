"""The Hub as a shelf: what is opened from it, and what is pushed to it."""
