"""A Report as a file; no arithmetic."""
