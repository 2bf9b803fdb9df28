"""What no single type can say: keys that belong together, patterns, duplicates, strange values."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import re2

from llmd.config.faults import Faults, dotted
from llmd.config.locate import KeyPath
from llmd.config.schema import (
    NOT_YET,
    ApiKey,
    Config,
    Group,
    ModelConfig,
    QueueSettings,
    Server,
    defaults,
    is_hf_reference,
    parse_rfc3339,
)

PLACEHOLDER = "change-me"
"""What examples write for a key, and what therefore no key may be."""

_REQUEST_ONLY = frozenset({"input", "messages", "model", "prompt", "query", "stream"})
_HF_PATTERN = re.compile(r"[\w.:/*?\[\]!-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_TENSOR_SPLIT = re.compile(r"(\d+(\.\d+)?([,/]\d+(\.\d+)?)*)?", re.ASCII)
_CACHE_TYPE = re.compile(r"[a-z0-9_]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check(config: Config, faults: Faults) -> None:
    """Add every fault of `config` that its types let through."""
    _not_built(config, faults)
    _server(config.server, faults)
    _hf_allow(config.llama.hf_allow, faults)
    _patterns(config.limits.blocked_patterns, ("limits", "blocked_patterns"), faults)
    _queue(config.queue, faults)
    _generation(config.generation, ("generation",), faults)
    for index, key in enumerate(config.api_keys):
        _api_key(key, ("api_keys", index), faults)
    for index, model in enumerate(config.models):
        _model(model, ("models", index), faults)
    _duplicate_keys(config.api_keys, faults)
    _duplicate_models(config.models, faults)


def _not_built(config: Config, faults: Faults) -> None:
    for name in sorted(NOT_YET):
        group, key = name.split(".")
        held: Group | tuple[Group, ...] = getattr(config, group)
        for index, item in enumerate(held if isinstance(held, tuple) else (held,)):
            path: KeyPath = (group, index, key) if isinstance(held, tuple) else (group, key)
            if getattr(item, key) != defaults(type(item))[key]:
                faults.add(path, "not supported yet; remove it")


def _server(server: Server, faults: Faults) -> None:
    for given, absent in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        paths = (("server", given), ("server", absent))
        if getattr(server, given) and not getattr(server, absent) and faults.sound(*paths):
            faults.add(paths[0], f"needs server.{absent} as well")
    for index, network in enumerate(server.trusted_proxies):
        if not _is_network(network):
            faults.add(
                ("server", "trusted_proxies", index),
                f'"{network}" is no IP address and no network such as 10.0.0.0/8',
            )
    for index, origin in enumerate(server.cors_origins):
        if origin != "*" and not _is_origin(origin):
            faults.add(
                ("server", "cors_origins", index),
                f'"{origin}" is neither "*" nor an origin such as https://chat.example.org',
            )


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and text == f"{parts.scheme}://{parts.netloc}"
        and "@" not in parts.netloc
    )


def _hf_allow(patterns: Iterable[str], faults: Faults) -> None:
    for index, pattern in enumerate(patterns):
        if not _HF_PATTERN.fullmatch(pattern) or not ("*" in pattern or "/" in pattern):
            faults.add(
                ("llama", "hf_allow", index),
                f'"{pattern}" matches no REPO:QUANT; write "*", "ggml-org/*", or the whole name',
            )


def _patterns(patterns: Iterable[str], path: KeyPath, faults: Faults) -> None:
    for index, pattern in enumerate(patterns):
        trouble = _re2_trouble(pattern)
        if trouble:
            faults.add((*path, index), f"is no RE2 expression: {trouble}")


def _re2_trouble(pattern: str) -> str:
    options = re2.Options()
    options.log_errors = False  # it would write to stderr by itself
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    return ""


def _queue(queue: QueueSettings, faults: Faults) -> None:
    paths = (("queue", "admin_quota"), ("queue", "max_size"))
    if 0 < queue.max_size <= queue.admin_quota and faults.sound(*paths):
        faults.add(
            paths[0],
            f"{queue.admin_quota} leaves users none of the {queue.max_size} places of "
            "queue.max_size; it must be less",
        )


def _generation(fields: dict[str, Any], path: KeyPath, faults: Faults) -> None:
    for field, value in fields.items():
        if field in _REQUEST_ONLY:
            faults.add((*path, field), "is the request's own to say and cannot be filled in")
        elif not _is_json(value):
            faults.add((*path, field), "has no counterpart in JSON; write it as a string")


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return isinstance(value, str | bool | int | float)


def _name(name: str, path: KeyPath, faults: Faults) -> None:
    if name and (name != name.strip() or not name.isprintable()):
        faults.add(path, "must be printable, with no space at either end")


def _api_key(key: ApiKey, path: KeyPath, faults: Faults) -> None:
    name, plain, digest = (*path, "name"), (*path, "key"), (*path, "key_sha256")
    _name(key.name, name, faults)
    if key.key and key.key_sha256:
        faults.add(plain, "and key_sha256 exclude each other; keep one")
    elif not key.key and not key.key_sha256 and faults.sound(plain, digest):
        faults.add(path, 'needs key or key_sha256; "llmd init" makes one')
    placeholder = ApiKey(name="placeholder", key=PLACEHOLDER).digest.hex()
    if key.key.strip().lower() == PLACEHOLDER:
        faults.add(plain, f'"{PLACEHOLDER}" is no secret; choose a key of your own')
    elif key.key and not (key.key.isascii() and key.key.isprintable() and " " not in key.key):
        faults.add(plain, "must be ASCII without spaces, or no HTTP header can carry it")
    if key.key_sha256 and not _SHA256.fullmatch(key.key_sha256):
        faults.add(digest, "must be 64 hexadecimal digits, the SHA-256 of the key")
    elif key.key_sha256.lower() == placeholder:
        faults.add(digest, f'is the digest of "{PLACEHOLDER}", which is no secret')
    if key.expires:
        try:
            parse_rfc3339(key.expires)
        except ValueError:
            faults.add(
                (*path, "expires"),
                "must be an RFC 3339 date-time with its offset, such as 2027-01-31T18:00:00Z",
            )


def _model(model: ModelConfig, path: KeyPath, faults: Faults) -> None:
    where, hub = (*path, "path"), (*path, "hf")
    if model.path and model.hf:
        faults.add(hub, "and path exclude each other; keep one")
    elif not model.path and not model.hf and faults.sound(where, hub):
        faults.add(path, "needs path or hf")
    if model.hf and not is_hf_reference(model.hf):
        faults.add(hub, "must be REPO or REPO:QUANT, such as ggml-org/Qwen3-0.6B-GGUF:Q8_0")
    names = [((*path, "name"), model.name)]
    names += [((*path, "aliases", i), alias) for i, alias in enumerate(model.aliases)]
    for at, name in names:
        _name(name, at, faults)
        if "," in name:  # llama-server reads --alias as a list
            faults.add(at, "must not contain a comma")
    if -1 < model.idle_timeout_sec < 0:
        faults.add((*path, "idle_timeout_sec"), "must be -1, or a number of at least 0")
    shapes: tuple[tuple[str, re.Pattern[str], str], ...] = (
        ("tensor_split", _TENSOR_SPLIT, "must be proportions such as 3,1"),
        ("cache_type_k", _CACHE_TYPE, "must be a type such as f16 or q8_0"),
        ("cache_type_v", _CACHE_TYPE, "must be a type such as f16 or q8_0"),
    )
    for key, shape, message in shapes:
        if not shape.fullmatch(getattr(model, key)):
            faults.add((*path, key), message)
    for variable in model.env:
        if not _ENV_NAME.fullmatch(variable):
            faults.add((*path, "env", variable), "is no name for an environment variable")
    _generation(model.generation, (*path, "generation"), faults)


def _duplicate_keys(keys: tuple[ApiKey, ...], faults: Faults) -> None:
    names: list[tuple[object, KeyPath]] = []
    digests: list[tuple[object, KeyPath]] = []
    for index, key in enumerate(keys):
        names.append((key.name, ("api_keys", index, "name")))
        if key.key or _SHA256.fullmatch(key.key_sha256):
            held = "key" if key.key else "key_sha256"
            digests.append((key.digest, ("api_keys", index, held)))
    _once(names, "name", faults)
    _once(digests, "key", faults)


def _duplicate_models(models: tuple[ModelConfig, ...], faults: Faults) -> None:
    names: list[tuple[object, KeyPath]] = []
    for index, model in enumerate(models):
        path: KeyPath = ("models", index)
        names.append((model.name, (*path, "name")))
        names += [(alias, (*path, "aliases", i)) for i, alias in enumerate(model.aliases)]
    _once(names, "name", faults)


def _once(values: Iterable[tuple[object, KeyPath]], what: str, faults: Faults) -> None:
    """Add a fault for each value that came before; empty ones have a fault already."""
    seen: dict[object, KeyPath] = {}
    for value, path in values:
        if value and seen.setdefault(value, path) != path:
            faults.add(path, f"the same {what} as {dotted(seen[value])}")
