"""Values that every room speaks in: no I/O, and nothing heavy at import."""
