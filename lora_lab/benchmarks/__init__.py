"""What takes how long, measured so that it can be trusted: swap strategies, latency, and the discipline of both."""
