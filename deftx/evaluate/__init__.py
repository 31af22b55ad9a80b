"""How good and how sure: metrics and bootstrap intervals; what is graded is decided elsewhere."""
