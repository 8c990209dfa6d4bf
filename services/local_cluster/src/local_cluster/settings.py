"""What the environment may set."""

from pydantic import Field, SecretStr

from handler_core.config import LogSettings


class Settings(LogSettings):
    """Settings, each by the environment variable of its name in capitals."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on."""
    port: int = Field(default=8970, ge=0, le=65_535)
    """The port to listen on, of all APIs; 0 takes a free one, and the start-up line tells which."""
    tokens: SecretStr = SecretStr("")
    """The bearer tokens that are known, with commas between; without any nobody needs one."""
    pending_seconds: float = Field(default=1.0, ge=0, le=86_400)
    """How long a run waits before it runs."""
    running_seconds: float = Field(default=4.0, ge=0, le=86_400)
    """How long a run runs, unless it asks for another time."""
    bookmark_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """The time between the bookmarks of a watch."""
    argo_namespace: str = Field(default="argo", min_length=1)
    """Where the workflow templates are."""
    workflow_templates: str = "document-ingestion,batch-inference,model-evaluation"
    """The workflow templates that there are from the start, with commas between."""
    kubeflow_pipelines: str = "rag-query,voice-pipeline"
    """The pipelines that Kubeflow knows from the start, with commas between."""
    kubeflow_versions: str = "1,2"
    """The versions of each, the newest last."""
    kubeflow_experiments: str = ""
    """The experiments that Kubeflow knows besides `Default`."""
    kubeflow_namespace: str = ""
    """Set, Kubeflow has many users, and its experiments and runs are in this namespace, which must be named; empty, it
    has one."""


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [part for part in map(str.strip, text.split(",")) if part]
