"""The screen of a full fine-tune beside the base it came from."""
