"""Films, recipes, servers and models made for tests."""
