"""Reading feature files: what a bag is, and how each format becomes bags."""
