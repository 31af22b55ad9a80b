"""What a training step and a stage take on a GPU, and whether that is what they must: `python -m benchmarks.gpu`.

    rows       a measured row, the limits by card, results-gpu.json and results-gpu.md
    steps      a step of each kind on fresh batches, replayed, and the plain reference; memory; kernels; torch.compile
    together   four sparse phases on one GPU at once
    stages     stages from end to end

What a CPU takes is in the other modules of `benchmarks`.
"""
