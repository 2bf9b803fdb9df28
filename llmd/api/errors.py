"""From what went wrong to what the client is told: every error in the one shape.

Only `LlmdError`s say what happened; anything else is a fault in llmd, which goes to the log in
full and to the client as a bare 500.
"""

from __future__ import annotations

import logging

import msgspec
from werkzeug import exceptions as http

from llmd import errors
from llmd.api.answer import JSON, error_headers
from llmd.api.routing import Reply
from llmd.observe.log import log

_log = logging.getLogger(__name__)


def reply(error: errors.LlmdError) -> Reply:
    """Return the answer that tells of an error."""
    return Reply(error.status, msgspec.json.encode(error.body()), (JSON, *error_headers(error)))


def translate(error: BaseException, path: str, request_id: str) -> errors.LlmdError:
    """Return what the client is told of `error`; what nobody expected is logged.

    Args:
        error: What a handler or the web framework raised.
        path: The request's path.
        request_id: For the log.
    """
    if isinstance(error, errors.LlmdError):
        return error
    if isinstance(error, http.HTTPException) and (error.code or 500) < 500:
        return _of_framework(error, path)
    log(_log, "a request crashed; this is a fault in llmd", logging.ERROR, request=request_id)
    _log.error("traceback", exc_info=error)
    return errors.LlmdError(
        f"something went wrong inside llmd; its log says more about the request {request_id}"
    )


def _of_framework(error: http.HTTPException, path: str) -> errors.LlmdError:
    shown = path[:200]
    match error:
        case http.NotFound():
            return errors.NotFound(f"there is no {shown}")
        case http.MethodNotAllowed():
            return errors.MethodNotAllowed(f"{shown} takes {allowed(error)} only")
        case http.RequestEntityTooLarge():
            return errors.RequestTooLarge(
                "the request body is larger than server.max_body_bytes; send less, or raise it"
            )
        case http.RequestTimeout():
            return errors.SlowClient("the request body was not completed in time")
        case _:
            return errors.InvalidRequest("the request cannot be understood")


def allowed(error: http.MethodNotAllowed) -> str:
    """Return the methods that a path takes, as the `Allow` header lists them."""
    return ", ".join(sorted(error.valid_methods or ()))
