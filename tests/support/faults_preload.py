"""Everything that a tiny sweep in one process imports, imported once for all the processes that are forked (`faults`).

torch, transformers and MLflow take twice as long to import as such a sweep takes. Nothing here may start a thread.
"""

from __future__ import annotations

import importlib

for name in (
    "alembic.command", "matplotlib.pyplot", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking.client", "optuna", "pandas.io.formats.csvs", "scipy.stats", "sklearn.metrics", "torch._dynamo",
    "transformers.models.xlm_roberta.modeling_xlm_roberta", "transformers.models.xlm_roberta.tokenization_xlm_roberta",
    "deftx.method.grading", "deftx.method.phases", "deftx.method.texts", "orchestrator.report.chosen",
    "orchestrator.report.markdown", "orchestrator.run.driver", "orchestrator.run.serial", "orchestrator.sweep",
    "orchestrator.tracking.mirror",
):  # fmt: skip
    importlib.import_module(name)
