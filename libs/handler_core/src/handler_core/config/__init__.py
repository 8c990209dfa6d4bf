"""Settings: read from the environment or from mounted files, checked before anything starts.

Each group is a class; a service's settings inherit the groups it needs. Every field is set by the environment
variable of its name in capitals (`LLM_URL`), or read from the file that `LLM_URL_FILE` names, or from a file of the
field's name in the folder `SECRETS_DIR` (default `/run/secrets`); a setting that is a file's path, such as
`NATS_CREDS`, becomes that file's. The environment counts first; what is empty is not set.
"""

from handler_core.config.base import (
    FileSource,
    Settings,
    SettingsError,
    existing,
    load,
    load_or_exit,
    masked,
    names,
    pairs,
    printable,
    url_field,
)
from handler_core.config.groups import (
    LOCAL,
    EmbeddingsSettings,
    LLMSettings,
    MilvusSettings,
    RerankerSettings,
    STTSettings,
    TTSSettings,
)
from handler_core.config.nats import NatsSettings
from handler_core.config.service import LogSettings, ServiceSettings
from handler_core.config.telemetry import OtelSettings

__all__ = [
    "LOCAL",
    "EmbeddingsSettings",
    "FileSource",
    "LLMSettings",
    "LogSettings",
    "MilvusSettings",
    "NatsSettings",
    "OtelSettings",
    "RerankerSettings",
    "STTSettings",
    "ServiceSettings",
    "Settings",
    "SettingsError",
    "TTSSettings",
    "existing",
    "load",
    "load_or_exit",
    "masked",
    "names",
    "pairs",
    "printable",
    "url_field",
]
