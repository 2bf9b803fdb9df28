"""The web page at `/`: llama-server's own chat, or a page of ours while that cannot be had.

The page and its files are open to all: they hold no secret, and a browser has no way to send a key
with them. What the page does with a model it does through the API, with the key that the person
enters in it.
"""

from __future__ import annotations

import re
import zlib
from html import escape

from llmd import __version__, errors
from llmd.api.answer import Header
from llmd.api.gate import header
from llmd.api.routes.upstream import WorkerAnswer, ask, reply_of
from llmd.api.routing import Access, Call, Reply, Route
from llmd.config import Config
from llmd.core.lifecycle import WorkerState

ASSET = (
    r"(?:_app/(?:[A-Za-z0-9_-]+/)*)?"
    r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(?:css|html|ico|js|json|map|png|svg|txt|webmanifest|woff2?)"
)
"""Names of files, which no endpoint of a llama-server's API has: only those are passed on."""

_DEADLINE_S = 10.0
_MAX_BYTES = 32 << 20  # packed, and unpacked
_ZERO = re.compile(rb"\s*q\s*=\s*0(\.0*)?\s*")

_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
)


async def _index(call: Call) -> Reply:
    answer = await _from_worker(call, b"/")
    if answer is None or answer.status not in (200, 304):
        return Reply(200, _page(call).encode(), _HEADERS)
    return reply_of(answer)


async def _asset(call: Call, name: str) -> Reply:
    answer = await _from_worker(call, b"/" + name.encode())
    if answer is None or answer.status not in (200, 304):
        raise errors.NotFound(f"there is no /{name[:200]}")
    return reply_of(answer)


async def _from_worker(call: Call, path: bytes) -> WorkerAnswer | None:
    """Ask the default model's worker for a file; None if it cannot be had now.

    A worker has its page compressed only, and refuses who does not take that: so it is asked for
    that always, and what some clients cannot read is unpacked here.
    """
    model = call.services.default_model()
    worker = call.services.serving(model.name) if model else None
    if worker is None:
        return None
    headers = [(b"Accept-Encoding", b"gzip")]
    if known := header(call.scope, b"if-none-match"):
        headers.append((b"If-None-Match", known))
    try:
        answer = await ask(
            worker,
            b"GET",
            path,
            deadline_s=_DEADLINE_S,
            headers=headers,
            limit_bytes=_MAX_BYTES,
        )
        return _readable(answer, header(call.scope, b"accept-encoding"))
    except errors.LlmdError:
        return None  # the page must come up above all when something is wrong


def _readable(answer: WorkerAnswer, accepted: bytes) -> WorkerAnswer:
    """Return an answer in a form that the client takes, as its Accept-Encoding says.

    Raises:
        BadWorkerResponse: It cannot be unpacked, or would be too large.
    """
    if (b"content-encoding", b"gzip") not in answer.headers:
        return answer
    kept = [(name, value) for name, value in answer.headers if name != b"vary"]
    kept.append((b"vary", b"Accept-Encoding"))
    if takes_gzip(accepted):
        return WorkerAnswer(answer.status, kept, answer.body)
    kept.remove((b"content-encoding", b"gzip"))
    return WorkerAnswer(answer.status, kept, _unpacked(answer.body))


def takes_gzip(accepted: bytes) -> bool:
    """Tell whether an Accept-Encoding allows gzip (RFC 9110, 12.5.3)."""
    weights: dict[bytes, bool] = {}
    for part in accepted.lower().split(b","):
        coding, _, weight = part.partition(b";")
        weights[coding.strip()] = not _ZERO.fullmatch(weight)
    return weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", False)))


def _unpacked(body: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        data = inflate.decompress(body, _MAX_BYTES)
    except zlib.error as error:
        raise errors.BadWorkerResponse("the worker's page cannot be unpacked") from error
    if not inflate.eof:
        raise errors.BadWorkerResponse(f"the worker's page is cut, or larger than {_MAX_BYTES}")
    return data


def _page(call: Call) -> str:
    """Say what this is and what there is, naming models only to those who may see them all."""
    services = call.services
    default = services.default_model()
    if services.gate.open_to(call.scope):
        state_of = services.operations.state_of
        rows = "".join(
            f"<li><code>{escape(model.name)}</code> {state_of(model).value}</li>"
            for model in services.catalog.models
        )
        models = f"<ul>{rows}</ul>" if rows else "<p>There is no model yet.</p>"
        loaded = default is not None and state_of(default) is WorkerState.READY
        if default is not None and not loaded:
            models += (
                f"<p>A chat page appears here while <code>{escape(default.name)}</code>, the "
                "default model, is loaded.</p>"
            )
    elif services.gate.open:
        models = "<p>Models are listed at <code>/v1/models</code>, by a name of this box only.</p>"
    else:
        models = "<p>Models are listed at <code>/v1/models</code>, which needs an API key.</p>"
    docs = (
        '<p>What can be asked: <a href="/docs">/docs</a></p>' if services.config.server.docs else ""
    )
    return _PAGE.format(version=escape(__version__), models=models, docs=docs)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>llmd</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 40rem; margin: 4rem auto; padding: 0 1rem; }}
</style>
</head>
<body>
<h1>llmd {version}</h1>
<p>This box serves language models with llama.cpp. Point any OpenAI client at
<code>/v1</code> of this address.</p>
{models}
{docs}
</body>
</html>
"""


def routes(config: Config) -> list[Route]:
    """Return this module's part of the table."""
    if not config.server.worker_ui:
        return []
    about = "llama-server's chat page, while the default model is loaded."
    return [
        Route("GET", "/", Access.OPEN, _index, about, "Pages"),
        Route("GET", "/<asset:name>", Access.OPEN, _asset, "The files of that page.", "Pages"),
    ]
