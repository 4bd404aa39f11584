"""What processes that register a run have imported before they are forked: MLflow takes seconds."""

from mlflow.store.model_registry import sqlalchemy_store as registry
from mlflow.store.tracking import sqlalchemy_store as tracking

from tests.unit.pipelines import registering

__all__ = ["registering", "registry", "tracking"]
