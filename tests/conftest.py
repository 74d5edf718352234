"""Makes `oracle` and `nets` importable from every folder of tests."""
