"""Files and folders of a command: written whole or not at all, known again, kept as caches."""
