"""What the user gives: rows and text of files, tokenizers, models, plans, options and sizes."""
