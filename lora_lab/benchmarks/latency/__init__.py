"""What adapters add to a forward pass: merged, beside the weight, as layers of their own, several in one batch."""
