"""What Hugging Face has of a repository: `llmd check --online` asks before anything is fetched.

llama-server does the fetching; this only looks, in the same places: `MODEL_ENDPOINT` or
`HF_ENDPOINT` for another hub, `HF_TOKEN` for private repositories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

ENDPOINT = "https://huggingface.co/"
DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")  # as llama-server chooses where none is named
_TIMEOUT_S = 10.0
_MAX_BYTES = 16 << 20
_SUFFIX = ".gguf"
_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_QUANT = re.compile(r"(?:^|[-._/])((?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))(?=$|[-._])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """What would be fetched: how many bytes, in how many files."""

    size_bytes: int
    files: int


class Missing(Exception):
    """The repository, or the quantisation in it, is not there."""


class Unreachable(Exception):
    """The hub cannot be asked, or its answer not be read."""


class _File(msgspec.Struct):
    type: str
    path: str
    size: int = 0


def look_up(reference: str, env: Mapping[str, str]) -> Found:
    """Return what the hub has of `REPO[:QUANT]`.

    Blocks for the network, ten seconds at most for each step of a request.

    Raises:
        Missing: There is nothing of that name, or it needs a token.
        Unreachable: It cannot be told.
    """
    import httpx

    repo, _, quant = reference.partition(":")
    endpoint = env.get("MODEL_ENDPOINT") or env.get("HF_ENDPOINT") or ENDPOINT
    url = f"{endpoint.rstrip('/')}/api/models/{quote(repo)}/tree/main"
    token = env.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with (
            httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, headers=headers) as client,
            client.stream("GET", url, params={"recursive": "true"}) as answer,
        ):
            status, body = answer.status_code, _whole(answer.iter_bytes())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{endpoint} cannot be asked: {error}") from error
    if status in (401, 403, 404):
        raise Missing(f"there is no repository {repo}, or it needs a token (HF_TOKEN)")
    if status != 200:
        raise Unreachable(f"{endpoint} answered {status}")
    return choose(repo, quant, _files(body, endpoint))


def choose(repo: str, quant: str, files: list[tuple[str, int]]) -> Found:
    """Return which of a repository's files (path and bytes) llama-server would fetch.

    Raises:
        Missing: None of them.
    """
    models: dict[str, list[int]] = {}
    for path, size_bytes in files:
        name = path.rpartition("/")[2]
        if path.endswith(_SUFFIX) and not any(word in name for word in _NO_MODEL):
            models.setdefault(_SHARD.sub("", path.removesuffix(_SUFFIX)), []).append(size_bytes)
    if not models:
        raise Missing(f"{repo} has no GGUF file")
    wanted = (quant,) if quant else DEFAULT_QUANTS
    for name in wanted:
        tag = re.compile(re.escape(name) + r"[.-]", re.IGNORECASE)  # as llama.cpp looks for it
        for stem, sizes in models.items():
            if tag.search(f"{stem}{_SUFFIX}"):
                return Found(sum(sizes), len(sizes))
    if quant:
        has = sorted({found[-1].upper() for stem in models if (found := _QUANT.findall(stem))})
        raise Missing(f"{repo} has no {quant}; it has {', '.join(has[:12]) or 'no quantised file'}")
    sizes = next(iter(models.values()))
    return Found(sum(sizes), len(sizes))


def _whole(parts: Iterable[bytes]) -> bytes:
    body = b""
    for part in parts:
        body += part
        if len(body) > _MAX_BYTES:
            raise Unreachable("the hub's answer is too long")
    return body


def _files(body: bytes, endpoint: str) -> list[tuple[str, int]]:
    try:
        files = msgspec.json.decode(body, type=list[_File])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreachable(f"{endpoint} answered what is no list of files") from error
    return [(file.path, max(file.size, 0)) for file in files if file.type == "file"]
