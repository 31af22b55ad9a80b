"""Where text and labelled rows come from: sources, benchmarks, leak removal, token blocks, and the demo family."""
