"""Long work in a child process: progress, cancel, log."""
