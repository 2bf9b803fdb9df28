"""Settings: `load` turns a TOML file, variables and flags into one frozen `Config`.

`schema.py` holds the structs, `load.py` the order of things, `checks.py` the rules that types
cannot say, `locate.py` the lines of a TOML file, `places.py` where files belong.
"""

from __future__ import annotations

from llmd.config.load import Loaded, Survey, load, load_variables, survey
from llmd.config.places import find_config, runtime_dir, state_dir, user_config
from llmd.config.schema import (
    NOT_YET,
    ApiKey,
    Auth,
    Config,
    Limits,
    Llama,
    Log,
    ModelConfig,
    QueueSettings,
    RateLimit,
    SchedulerSettings,
    Server,
    Store,
    Streaming,
    WorkerSettings,
)

__all__ = [
    "NOT_YET",
    "ApiKey",
    "Auth",
    "Config",
    "Limits",
    "Llama",
    "Loaded",
    "Log",
    "ModelConfig",
    "QueueSettings",
    "RateLimit",
    "SchedulerSettings",
    "Server",
    "Store",
    "Streaming",
    "Survey",
    "WorkerSettings",
    "find_config",
    "load",
    "load_variables",
    "runtime_dir",
    "state_dir",
    "survey",
    "user_config",
]
