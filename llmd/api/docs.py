"""The API's own documentation, made from the table of routes: `/openapi.json` and `/docs`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import msgspec

from llmd import __version__
from llmd.api.answer import Header
from llmd.api.routing import Access, Call, Reply, Route, as_json
from llmd.api.schema import KINDS

_PART = re.compile(r"<(?:(\w+):)?(\w+)>")
_TYPES = {"int": "integer"}
_ERROR = {
    "description": "An error.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_INFERENCE = {
    "chat": "A chat completion.",
    "completion": "A completion.",
    "embeddings": "Embeddings.",
}
_HTML: tuple[Header, ...] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
)


def routes(table: Sequence[Route]) -> list[Route]:
    """Return the routes that document `table` and inference."""
    told = [*_inference(), *table]

    async def schema(_: Call) -> Reply:
        return as_json(openapi(told))

    async def page(_: Call) -> Reply:
        return Reply(200, _page(told).encode(), _HTML)

    own = [
        Route("GET", "/openapi.json", Access.OPEN, schema, "This API as OpenAPI 3.1.", "Pages"),
        Route("GET", "/docs", Access.OPEN, page, "This API as a page.", "Pages"),
    ]
    told += own
    return own


def openapi(table: Iterable[Route]) -> dict[str, Any]:
    """Return the OpenAPI document of a table of routes."""
    table = list(table)
    shapes = [route.body for route in table if route.body is not None]
    _, components = msgspec.json.schema_components(
        shapes, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(_braced(route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmd", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _error_schema()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": _TYPES.get(kind, "string")},
        }
        for kind, name in _PART.findall(route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in route.query.items()
    ]
    operation: dict[str, Any] = {
        "summary": route.summary,
        "tags": [route.tag],
        "responses": {"200": {"description": "Done."}, "default": _ERROR},
    }
    if parameters:
        operation["parameters"] = parameters
    if route.access is not Access.OPEN:
        operation["security"] = [{"key": []}]
        operation["description"] = f"Needs {_needs(route.access)}."
    if route.method == "POST":
        shape = {"type": "object"} if route.body is None else _reference(route.body)
        operation["requestBody"] = {"content": {"application/json": {"schema": shape}}}
    return operation


def _braced(path: str) -> str:
    return _PART.sub(r"{\2}", path)


def _reference(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _needs(access: Access) -> str:
    return "an admin's key" if access is Access.ADMIN else "a key"


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    maybe = {"type": ["string", "null"]}
    fields = {"message": text, "type": text, "param": maybe, "code": maybe}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


async def _unused(_: Call) -> Reply:
    raise AssertionError("inference does not go through the table")


def _inference() -> list[Route]:
    return [
        Route("POST", path, Access.KEY, _unused, _INFERENCE.get(kind.name, kind.name), "Inference")
        for path, kind in KINDS.items()
    ]


def _page(table: Iterable[Route]) -> str:
    groups: dict[str, list[Route]] = {}
    for route in table:
        groups.setdefault(route.tag, []).append(route)
    parts = []
    for tag, group in groups.items():
        rows = "".join(
            f"<tr><td>{route.method}</td>"
            f"<td><code>{escape(_braced(route.path))}</code></td>"
            f"<td>{escape(route.summary)}</td><td>{escape(route.access.value)}</td></tr>"
            for route in group
        )
        parts.append(f"<h2>{escape(tag)}</h2><table>{rows}</table>")
    return _PAGE.format(version=escape(__version__), groups="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>llmd: HTTP API</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ padding: .2rem .8rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8884; }}
</style>
</head>
<body>
<h1>llmd {version}: HTTP API</h1>
<p>Keys go in <code>Authorization: Bearer KEY</code> or <code>x-api-key</code>. Bodies are JSON;
inference and helpers take what llama-server takes. Errors are
<code>{{"error": {{"message", "type", "param", "code"}}}}</code>. The same for machines:
<a href="/openapi.json">/openapi.json</a>.</p>
{groups}
</body>
</html>
"""
