"""Speed, memory and correctness of the attention operation against others."""
