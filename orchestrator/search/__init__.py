"""Which combination is asked next, which job may run next, and which combination is chosen; no Ray and no files."""
