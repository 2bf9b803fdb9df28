"""Every way in which llmd says no, one class a cause.

Each class carries the machine-readable `code`, the HTTP `status` and the OpenAI error `type` of
product behaviour, so that every edge (HTTP, admin socket, stream) renders the same refusal. An
instance carries what an operator or client needs: a message that says what to do, the request
field at fault, and whether and when trying again makes sense.
"""

from __future__ import annotations

from typing import ClassVar


class LlmdError(Exception):
    """The root: anything that llmd itself refuses or fails at, on purpose.

    Args:
        message: One sentence or two for a person; never contains keys or prompts.
        param: The request field at fault, in dotted form, or None.
        retry_after_s: Seconds after which another try is likely to succeed; None when unknown.
        should_retry: False marks what can never succeed unchanged (`x-should-retry: false`);
            None leaves the decision to the client.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_should_retry: ClassVar[bool | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = self.default_should_retry if should_retry is None else should_retry

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the OpenAI error object, all four fields present."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


# --- the client's request ------------------------------------------------------------------


class InvalidRequest(LlmdError):
    """Bad JSON, a wrong type, a value out of range."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"


class BlockedContent(InvalidRequest):
    """A message matched one of `limits.blocked_patterns`."""

    code = "content_blocked"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and `max_tokens` cannot fit the model's context."""

    code = "context_length_exceeded"


class InvalidApiKey(LlmdError):
    """No key, or one that is wrong, expired or revoked."""

    code = "invalid_api_key"
    status = 401
    type = "invalid_request_error"


class PermissionDenied(LlmdError):
    """The key is good, but this is not its right."""

    code = "permission_denied"
    status = 403
    type = "permission_error"


class NotFound(LlmdError):
    """No such path."""

    code = "not_found"
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No such model. One that exists and is not this key's to use is `PermissionDenied`."""

    code = "model_not_found"


class RequestNotFound(NotFound):
    """No such request, or not one that this key may see."""

    code = "request_not_found"


class MethodNotAllowed(LlmdError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405
    type = "invalid_request_error"


class SlowClient(LlmdError):
    """The client did not finish its head or body in time."""

    code = "request_timeout"
    status = 408
    type = "invalid_request_error"


class Conflict(LlmdError):
    """What the action was aimed at has moved on."""

    code = "conflict"
    status = 409
    type = "invalid_request_error"


class RequestTooLarge(LlmdError):
    """The body is larger than `server.max_body_bytes`."""

    code = "request_too_large"
    status = 413
    type = "invalid_request_error"


class HeaderTooLarge(LlmdError):
    """The request head is larger than llmd reads."""

    code = "header_too_large"
    status = 431
    type = "invalid_request_error"


# --- limits --------------------------------------------------------------------------------


class RateLimitExceeded(LlmdError):
    """A key is over its requests or tokens for now."""

    code = "rate_limit_exceeded"
    status = 429
    type = "rate_limit_error"


class InsufficientQuota(RateLimitExceeded):
    """A key has spent its tokens of the day or month."""

    code = "insufficient_quota"
    default_should_retry = False


class RequestCancelled(LlmdError):
    """The owner or an operator cancelled the request."""

    code = "request_cancelled"
    status = 499
    type = "request_cancelled"
    default_should_retry = False


# --- the service ---------------------------------------------------------------------------


class StreamingDisabled(LlmdError):
    """`stream=true` while `streaming.enabled=false`."""

    code = "streaming_disabled"
    status = 501
    type = "not_implemented"
    default_should_retry = False


class NotSupportedYet(LlmdError):
    """An endpoint that llmd is to have and has not yet."""

    code = "not_supported_yet"
    status = 501
    type = "not_implemented"
    default_should_retry = False


class BadWorkerResponse(LlmdError):
    """The worker answered what is no HTTP, no JSON or no SSE, or died mid-answer."""

    code = "bad_worker_response"
    status = 502
    type = "server_error"


class Unavailable(LlmdError):
    """Root of the 503s; never raised itself."""

    status = 503


class QueueFull(Unavailable):
    """No place in the queue: by count, by tokens, by model or by the key's share."""

    code = "queue_full"


class ShuttingDown(Unavailable):
    """llmd drains, or everything was stopped while this request was queued."""

    code = "shutting_down"


class InsufficientMemory(Unavailable):
    """The model does not fit beside what may not be evicted."""

    code = "insufficient_memory"


class ModelFailed(Unavailable):
    """The model could not be loaded; the message says why."""

    code = "model_failed"
    default_should_retry = False


class ModelNotLoaded(Unavailable):
    """`scheduler.auto_switch` is off, or the path never loads models, and it is not loaded."""

    code = "model_not_loaded"


class RequestTimedOut(LlmdError):
    """`limits.request_timeout_sec` passed, queueing included."""

    code = "request_timeout"
    status = 504
    type = "server_error"
    default_should_retry = False


class WorkerStalled(LlmdError):
    """The worker went silent mid-generation and was found hung."""

    code = "worker_stalled"
    status = 504
    type = "server_error"
    default_should_retry = False


# --- inside --------------------------------------------------------------------------------


class ConfigError(LlmdError):
    """A config that cannot be used; `faults` holds every one of them.

    Args:
        faults: Lines for a person, each with TOML path and line where there is one.
    """

    code = "config_error"

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class StartFailed(LlmdError):
    """A worker did not become ready.

    Args:
        message: Why: exit code or signal, and the last lines of its stderr.
        permanent: True when trying again cannot help (missing file, bad flag, bad GGUF).
    """

    code = "model_failed"
    status = 503

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class WorkerDied(LlmdError):
    """The worker's process ended, or its connection broke, during a request.

    Args:
        message: What was seen.
        answered: True when a byte of the answer had already come.
    """

    code = "bad_worker_response"
    status = 502

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered
