"""What is measured, against what, and how to run it. Each part is a module: `python -m benchmarks.demo_seeds`."""
