"""What belongs to one sweep in the store: its state, its lease, its grades, and what may be removed; no Ray, Optuna or
MLflow.
"""
