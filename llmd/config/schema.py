"""The settings as frozen structs: one group a TOML table, one field a TOML key.

The types carry the ranges; `checks.py` adds what a type cannot say. What each key does is said
once, in `config.toml.example`, which a test holds to these structs. Keys that end in `_sec` are
seconds and may have a fraction. 0 means "no limit" wherever a limit is meant.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
CountOrInherit = Annotated[int, msgspec.Meta(ge=-1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]

NOT_YET = frozenset(
    {
        "api_keys.tokens_per_day",
        "api_keys.tokens_per_month",
        "models.reranking",
        "store.database",
        "store.log_prompts",
        "store.prompt_retention_days",
        "store.retention_days",
        "worker.gpu_devices",
        "worker.survive_restart",
        "worker.vram_multiplier",
        "worker.vram_reserve_mb",
    }
)
"""Keys whose capability is not built yet: known, but refused with any value but the default."""


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all groups share: immutable, built by keyword, and closed."""


class Server(Group, frozen=True, kw_only=True):
    """`[server]`: where llmd listens and what it bears from a client."""

    host: Text = "127.0.0.1"
    port: Port = 7860
    tls_cert: str = ""
    tls_key: str = ""
    trusted_proxies: tuple[str, ...] = ()
    admin_socket: str = ""
    admin_group: str = ""
    admin_read_all: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: Count = 33554432
    max_connections: Count = 1000
    header_timeout_sec: Seconds = 10
    body_timeout_sec: Seconds = 60
    send_timeout_sec: Seconds = 60
    drain_timeout_sec: Seconds = 30
    worker_ui: bool = True
    docs: bool = True
    metrics_open: bool = False
    request_history: Count = 1000


class Llama(Group, frozen=True, kw_only=True):
    """`[llama]`: the engine, and where models come from."""

    binary: Text = "auto"
    models_dir: str = ""
    hf_allow: tuple[str, ...] = ("*",)
    args: tuple[str, ...] = ()


class WorkerSettings(Group, frozen=True, kw_only=True):
    """`[worker]`: the life of a llama-server process."""

    max_loaded: Count = 1
    idle_timeout_sec: Seconds = 0
    startup_timeout_sec: Seconds = 120
    stop_timeout_sec: Seconds = 10
    health_interval_sec: Seconds = 30
    stall_timeout_sec: Seconds = 60
    restart_limit: Count = 3
    restart_window_sec: Seconds = 300
    preload: tuple[str, ...] = ()
    gpu_devices: tuple[Count, ...] = ()
    vram_reserve_mb: Count = 512
    vram_multiplier: Annotated[float, msgspec.Meta(ge=1)] = 1.1
    survive_restart: bool = False


class Auth(Group, frozen=True, kw_only=True):
    """`[auth]`: what holds while there is no key at all."""

    allow_open: bool = False


class Limits(Group, frozen=True, kw_only=True):
    """`[limits]`: what one request may ask for."""

    default_max_tokens: Count = 512
    max_tokens_per_request: Count = 0
    request_timeout_sec: Seconds = 600
    max_messages: Count = 1000
    max_message_bytes: Count = 1048576
    max_content_bytes: Count = 16777216
    blocked_patterns: tuple[str, ...] = ()


class QueueSettings(Group, frozen=True, kw_only=True):
    """`[queue]`: how much may wait, and whose."""

    max_size: Count = 100
    max_size_per_model: Count = 0
    max_tokens: Count = 1000000
    admin_quota: Count = 10
    max_share: Share = 0.5


class SchedulerSettings(Group, frozen=True, kw_only=True):
    """`[scheduler]`: who goes next, and when models change."""

    auto_switch: bool = True
    default_model: str = ""
    unknown_model: Literal["error", "default"] = "error"
    max_delay_sec: Seconds = 30
    max_drain_sec: Seconds = 0
    min_residency_sec: Seconds = 5
    aging_sec: Seconds = 60
    retry_on_worker_death: bool = True


class Streaming(Group, frozen=True, kw_only=True):
    """`[streaming]`: answers that come piece by piece."""

    enabled: bool = True
    keepalive_sec: Seconds = 10


class RateLimit(Group, frozen=True, kw_only=True):
    """`[rate_limit]`: what holds for a key that sets nothing of its own."""

    requests_per_minute: Count = 60
    estimated_tokens_per_minute: Count = 100000
    concurrent_requests: Count = 0
    anonymous: bool = False


class Store(Group, frozen=True, kw_only=True):
    """`[store]`: users, keys and the request log."""

    database: str = ""
    retention_days: Count = 30
    log_prompts: bool = False
    prompt_retention_days: Count = 1


class Log(Group, frozen=True, kw_only=True):
    """`[log]`: what llmd says of itself."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json"] = "auto"


class ApiKey(Group, frozen=True, kw_only=True):
    """One `[[api_keys]]`: who may come in, and with which rights.

    Compare callers with `digest`. `load` leaves no plain text behind: it turns `key` into
    `key_sha256`. -1 in a limit takes `[rate_limit]`'s.
    """

    name: Text
    key: str = ""
    key_sha256: str = ""
    role: Literal["user", "admin"] = "user"
    priority: Literal["", "high", "normal", "low"] = ""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    models: tuple[str, ...] = ()
    expires: str = ""
    requests_per_minute: CountOrInherit = -1
    estimated_tokens_per_minute: CountOrInherit = -1
    concurrent_requests: CountOrInherit = -1
    tokens_per_day: Count = 0
    tokens_per_month: Count = 0

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key, 32 bytes."""
        if self.key:
            return hashlib.sha256(self.key.encode()).digest()
        return bytes.fromhex(self.key_sha256)

    @property
    def expires_at(self) -> float | None:
        """When the key ends, in Unix seconds; None for never."""
        return parse_rfc3339(self.expires).timestamp() if self.expires else None

    def __repr__(self) -> str:
        return f"ApiKey(name={self.name!r}, role={self.role!r})"


class ModelConfig(Group, frozen=True, kw_only=True):
    """One `[[models]]`: a model and how its llama-server is started.

    `load` makes paths absolute and sees to it that exactly one of `path` and `hf` is set. An
    absent `name` is left to the catalog.
    """

    name: str = ""
    path: str = ""
    hf: str = ""
    aliases: tuple[Text, ...] = ()
    context_size: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto"] = "auto"
    parallel: Count = 0
    threads: Count = 0
    gpu_layers: CountOrInherit = -1
    tensor_split: str = ""
    cache_type_k: str = ""
    cache_type_v: str = ""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    embedding: bool = False
    reranking: bool = False
    pooling: Literal["", "none", "mean", "cls", "last", "rank"] = ""
    mmproj: str = ""
    draft: str = ""
    lora: tuple[Text, ...] = ()
    chat_template: str = ""
    idle_timeout_sec: Annotated[float, msgspec.Meta(ge=-1)] = -1
    pinned: bool = False
    generation: dict[str, Any] = msgspec.field(default_factory=dict)
    args: tuple[str, ...] = ()
    env: dict[str, str] = msgspec.field(default_factory=dict)


class Config(Group, frozen=True, kw_only=True):
    """All settings. `Config()` is what runs with no file at all.

    `generation` holds request fields that every request gets when it does not name them.
    """

    server: Server = Server()
    llama: Llama = Llama()
    worker: WorkerSettings = WorkerSettings()
    auth: Auth = Auth()
    generation: dict[str, Any] = msgspec.field(default_factory=dict)
    limits: Limits = Limits()
    queue: QueueSettings = QueueSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    streaming: Streaming = Streaming()
    rate_limit: RateLimit = RateLimit()
    store: Store = Store()
    log: Log = Log()
    api_keys: tuple[ApiKey, ...] = ()
    models: tuple[ModelConfig, ...] = ()


ARRAYS: dict[str, type[Group]] = {"api_keys": ApiKey, "models": ModelConfig}
"""The groups that are written `[[name]]`, any number of times."""


def tables() -> dict[str, type[Group]]:
    """Return the groups that are written `[name]` with a fixed set of keys, in order."""
    return {
        field.name: field.type
        for field in msgspec.structs.fields(Config)
        if isinstance(field.type, type) and issubclass(field.type, Group)
    }


def defaults(group: type[Group]) -> dict[str, Any]:
    """Return the keys of a group with what holds for one that is absent.

    A key that must be there has `msgspec.NODEFAULT`.
    """
    return {
        field.name: field.default
        if field.default_factory is msgspec.NODEFAULT
        else field.default_factory()
        for field in msgspec.structs.fields(group)
    }


_HF_REFERENCE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[A-Za-z0-9][\w.-]*)?", re.ASCII)


def is_hf_reference(text: str) -> bool:
    """Tell whether `text` is written as a Hugging Face repository is: `REPO` or `REPO:QUANT`."""
    return _HF_REFERENCE.fullmatch(text) is not None


_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def parse_rfc3339(text: str) -> datetime:
    """Return the moment that an RFC 3339 date-time names; its offset is required.

    Raises:
        ValueError: It is none, or there is no such moment.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"no RFC 3339 date-time: {text!r}")
    day, clock, fraction, offset = match.groups()
    # Python 3.10 reads neither "Z" nor fractions of another length than 3 or 6
    micros = ((fraction or "") + "000000")[:6]
    return datetime.fromisoformat(f"{day}T{clock}.{micros}{'+00:00' if offset in 'Zz' else offset}")
