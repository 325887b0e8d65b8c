"""Whole builds: demo, kills, damage, strangers."""
