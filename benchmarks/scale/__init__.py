"""One sequence in several processes: what they exchange, what it costs, when it pays."""
