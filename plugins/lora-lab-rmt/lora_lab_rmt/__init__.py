"""The random-matrix view: which directions of an update stand out from what chance would make."""
