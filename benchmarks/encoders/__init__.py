"""Real encoders of Hugging Face, converted."""
