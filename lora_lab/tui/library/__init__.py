"""The library: what a folder holds, one line for each."""
