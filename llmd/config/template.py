"""The config that `llmd init` writes: short, commented, with one admin key."""

from __future__ import annotations

import hashlib
import json
import secrets

_TEMPLATE = """\
# llmd's settings. What is absent has its default; config.toml.example in llmd's source tells
# every key. "llmd check" says what this file resolves to.

[server]
host = "127.0.0.1"      # 0.0.0.0 serves the network
port = 7860

[llama]
# Every .gguf file below this directory is a model; "" for none.
models_dir = {models_dir}

[worker]
max_loaded = 1          # models in memory at once; 0 = as many as fit

# The administrator. The key itself was shown once, when this file was written: only its digest
# is here. Make the digest of another key with: printf %s THE-KEY | sha256sum
[[api_keys]]
name = "admin"
key_sha256 = "{digest}"
role = "admin"

# [[api_keys]]
# name = "alice"
# key_sha256 = ""

# A model that is not in models_dir, or that needs settings of its own:
# [[models]]
# name = "qwen3"
# hf = "ggml-org/Qwen3-0.6B-GGUF:Q8_0"     # fetched when first loaded; or path = "/a/file.gguf"
"""


def new_key() -> str:
    """Return a fresh API key: 256 random bits, in letters that a header can carry."""
    return f"sk-llmd-{secrets.token_urlsafe(32)}"


def starter(key: str, models_dir: str) -> str:
    """Return the text of a config whose one admin has `key`.

    Args:
        key: The plain key; only its digest is written.
        models_dir: An absolute directory, or "".
    """
    # a JSON string is a TOML basic string, but for DEL, which JSON leaves as it is
    quoted = json.dumps(models_dir, ensure_ascii=False).replace("\x7f", "\\u007f")
    return _TEMPLATE.format(models_dir=quoted, digest=hashlib.sha256(key.encode()).hexdigest())
