"""Data sets: their description in TOML, what a value may be, and the public ones that can be fetched."""
