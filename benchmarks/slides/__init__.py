"""Whole slides: what maps are worth where the right answer is known, and a real slide."""
