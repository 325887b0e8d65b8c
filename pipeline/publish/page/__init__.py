"""The page on which one sees a dataset: one file to open, or served while a build runs."""
