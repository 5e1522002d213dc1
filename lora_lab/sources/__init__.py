"""Locators: what a person types, and the files it stands for."""
