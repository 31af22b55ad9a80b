"""The sweep in MLflow, as a mirror of the store; nothing is ever read back from there."""
