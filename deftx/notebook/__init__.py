"""What a notebook calls: `deftx.learn_language`, `learn_task`, `compose` and `grade`. Thin doors on stages and store;
what each stage runs is in `method`.
"""
