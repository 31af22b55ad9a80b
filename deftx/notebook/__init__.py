"""What a notebook calls: `deftx.learn_language`, `learn_task`, `compose` and `grade`. Thin functions over stages and
store; what each stage runs is in `method`.
"""
