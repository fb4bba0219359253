"""The options of the loggers: where losses and results go besides the run's folder."""

from typing import Any, Literal

from pydantic import BaseModel, model_validator

from noveltylab.command.validate import STRICT, Project, TrackingURI


class LoggerOptions(BaseModel):
    """Where losses and results go besides the run's folder, which always has them."""

    model_config = STRICT

    csv: Literal[True] = True
    wandb: bool = False
    tensorboard: bool = False
    mlflow: bool = False
    project: Project = "noveltylab"
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    tracking_uri: TrackingURI | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, values: Any) -> Any:
        """Runs recorded when a run had one logger name it: {"name": "wandb", ...}."""
        if not isinstance(values, dict) or values.get("name") not in ("csv", "wandb"):
            return values
        options = {key: value for key, value in values.items() if key != "name"}
        return {values["name"]: True, **options}
