"""What one does with a built dataset: rebuild it, compare, verify, describe, take down, sweep."""
