"""A recipe in, a dataset and a lock out."""
