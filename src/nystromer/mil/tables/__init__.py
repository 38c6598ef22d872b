"""Reading tables: labels, survival, patients and splits of slides."""
