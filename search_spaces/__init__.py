"""The search spaces that come with the package: YAML, read by `orchestrator.space`."""
