"""The screen of two adapters: what the one has learnt beside what the other has."""
