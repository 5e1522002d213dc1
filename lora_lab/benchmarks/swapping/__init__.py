"""Ways to go from a model with one adapter to the same model with another, and what each of them costs."""
