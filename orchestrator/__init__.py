"""The search: stages scheduled by Ray Tune, combinations asked of Optuna, results mirrored into MLflow."""
