"""The Long Range Arena: its data, the attentions that are compared, their training."""
