"""What a rank would cost on a base model: a slider, targets, and the numbers of the analysis ``budget``."""
