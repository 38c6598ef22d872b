"""Calibrating an encoder: measure every layer, then choose its attention under a budget."""
