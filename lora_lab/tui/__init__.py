"""The terminal application: one way of showing what a Session says, and no arithmetic."""
