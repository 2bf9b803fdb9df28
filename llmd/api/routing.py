"""What a route is: a path, who may use it, and a function from a call to a reply.

Handlers know nothing of the web framework: they get a `Call`, return a `Reply`, and raise
`LlmdError`. The table of routes is also what the documentation is made from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import msgspec

from llmd import errors
from llmd.api.answer import JSON, Header
from llmd.api.asgi import Json
from llmd.api.auth import Principal, may_use_model
from llmd.api.schema import check_depth
from llmd.api.services import Services
from llmd.models.catalog import CatalogModel

T = TypeVar("T")


class Access(Enum):
    """Who may use a route."""

    OPEN = "open to all"
    KEY = "any key"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = (JSON,)


@dataclass(slots=True)
class Call:
    """One request on its way through a route.

    Attributes:
        services: What handlers work with.
        scope: The ASGI scope.
        query: The query's parameters, the first of each name.
        request_id: What `X-Request-Id` says.
        read: Reads the whole body, bounded in size and time.
        caller: Who is calling; None where the route is open to all.
        headers: Sent with the answer, whether it is a reply or an error.
    """

    services: Services
    scope: Json
    query: Mapping[str, str]
    request_id: str
    read: Callable[[], Awaitable[bytes]]
    caller: Principal | None = None
    headers: list[Header] = field(default_factory=list)

    @property
    def principal(self) -> Principal:
        """Who is calling, on a route that needs a key."""
        assert self.caller is not None
        return self.caller

    def may_use(self, model: CatalogModel) -> bool:
        """Tell whether the caller may see and use a model."""
        return may_use_model(self.principal, model.name, model.aliases)

    def model(self, name: str, *, param: str | None = None) -> CatalogModel:
        """Return the model that was named.

        Raises:
            ModelNotFound: There is none.
            PermissionDenied: There is, but not for this key.
        """
        model = self.services.catalog.resolve(name)
        if model is None:
            raise errors.ModelNotFound(f"the model {name[:200]!r} does not exist", param=param)
        return self.services.permitted(model, self.principal, param=param)

    def wanted(self, name: str, *, param: str | None = None) -> CatalogModel:
        """Return the model that an admin wants loaded; see `Operations.wanted`.

        Raises:
            ModelNotFound: There is none.
            PermissionDenied: It is not for this key, or not within `llama.hf_allow`.
        """
        model = self.services.operations.wanted(name, param=param)
        return self.services.permitted(model, self.principal, param=param)

    def flag(self, name: str) -> bool:
        """Return a yes-or-no parameter of the query; absent is no.

        Raises:
            InvalidRequest: It is neither.
        """
        value = self.query.get(name, "0").lower()
        if value not in _FLAGS:
            raise errors.InvalidRequest(f"{name} must be true or false", param=name)
        return _FLAGS[value]

    def number(self, name: str, default: int, *, most: int) -> int:
        """Return a whole number of the query, from 1 to `most`.

        Raises:
            InvalidRequest: It is none.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
            raise errors.InvalidRequest(
                f"{name} must be a whole number from 1 to {most}", param=name
            )
        return int(text)

    async def form(self, shape: type[T]) -> T:
        """Read the body as a JSON object of `shape`; an empty body is an empty object.

        Raises:
            InvalidRequest: It is none; `param` names the field at fault.
        """
        return decode(await self.read() or b"{}", shape)


Handler = Callable[..., Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        method: GET (HEAD comes with it) or POST.
        path: With `<path:name>`, `<int:name>` and the like for what the handler gets by keyword.
        access: Who may use it; checked before the body is read.
        handler: Called with the `Call` and what stands in the path.
        summary: One sentence for the documentation.
        tag: The group that it is documented under.
        body: The shape of the JSON body; None where there is none, or where a worker says.
        query: The parameters of the query that it knows, with what they mean.
    """

    method: str
    path: str
    access: Access
    handler: Handler
    summary: str
    tag: str
    body: type[msgspec.Struct] | None = None
    query: Mapping[str, str] = field(default_factory=dict)


_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True, "": True}
_encode = msgspec.json.Encoder().encode
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `([^`]*)`")
_MISSING = re.compile(r"required field `([^`]*)`")
_KIND = re.compile(r"^Expected `([^`]*)`( [<>]=? [\d.]+)?")
_WORDS = {
    "str": "a string",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "an object",
    "array": "an array",
}


def as_json(value: Any, *, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
    """Return a reply with `value` as JSON."""
    return Reply(status, _encode(value), (JSON, *headers))


def decode(body: bytes, shape: type[T]) -> T:
    """Read JSON of a given shape.

    Raises:
        InvalidRequest: It is none; `param` names the field at fault.
    """
    try:
        found = msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), shape) from error
    except RecursionError as error:
        raise errors.InvalidRequest("the request body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise errors.InvalidRequest("the request body is not valid UTF-8") from error
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise errors.InvalidRequest(f"the request body is not valid JSON: {reason}") from error
    check_depth(body)  # a worker may be the next to read it, and some crash on deep nesting
    return found


def _wrong(reason: str, shape: Any) -> errors.InvalidRequest:
    unknown = _UNKNOWN.search(reason)
    if unknown is not None:
        return _unknown(unknown[1], shape)
    missing = _MISSING.search(reason)
    if missing is not None:
        return errors.InvalidRequest(f"{missing[1]} is required", param=missing[1])
    found = _FIELD.search(reason)
    if found is None or not found[1]:
        return errors.InvalidRequest("the request body must be a JSON object")
    kind = _KIND.match(reason)
    words = "of another type"
    if kind is not None:
        kinds = [_WORDS.get(name, name) for name in kind[1].split(" | ") if name != "null"]
        words = " or ".join(kinds) + (kind[2] or "")
    return errors.InvalidRequest(f"{found[1]} must be {words}", param=found[1])


def _unknown(name: str, shape: type[msgspec.Struct]) -> errors.InvalidRequest:
    """Name the known field that an unknown one is most like."""
    known = [field.encode_name for field in msgspec.structs.fields(shape)]
    shown = name[:100]
    guess = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)
    told = f"did you mean {guess[0]}?" if guess else "this takes no fields"
    return errors.InvalidRequest(f"{shown} is no field of this request; {told}", param=shown)
