"""One training loop for both phases, and what it minimises; which entries train is decided in `masks`."""
