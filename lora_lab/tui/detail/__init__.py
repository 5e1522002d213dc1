"""The screen of one adapter."""
