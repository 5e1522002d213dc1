"""The terminal application: shows, and asks the session."""
