"""Whether a request can fit its model's context and the limit for one request.

An estimate alone refuses nothing that might fit: where it could be wrong, the worker counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmd import errors
from llmd.api import schema
from llmd.api.answer import Answer
from llmd.api.auth import Principal
from llmd.api.counting import count_prompts
from llmd.api.schema.kinds import Prompt
from llmd.api.services import Services
from llmd.core.tokens import Estimate, PromptSize
from llmd.models.catalog import CatalogModel
from llmd.registry import Handle
from llmd.workers.worker import Worker


@dataclass(slots=True)
class Call:
    """What is known of one request once it is admitted."""

    handle: Handle
    answer: Answer
    principal: Principal
    parsed: schema.ParsedRequest
    model: CatalogModel
    estimate: Estimate
    counted: bool = False  # by the worker, exactly


async def expect_fit(call: Call, services: Services, worker: Worker | None) -> None:
    """Refuse what can never fit; a refusal is decided by the worker's own count, if it is up.

    Raises:
        ContextLengthExceeded: Prompt and `max_tokens` are more than the context can be.
        InvalidRequest: They are more than `limits.max_tokens_per_request`.
    """
    parsed = call.parsed
    limit = services.config.limits.max_tokens_per_request
    context = services.fleet.largest_context(call.model)
    sure = _over(call.estimate, context, limit)
    if not call.counted:
        if not sure and not _over(_most(call, services), context, limit):
            return
        if worker is not None and worker.upstream is not None:
            counts = await count_prompts(worker.upstream, parsed)
            if counts:
                total, size = sum(counts), prompt_size(parsed)
                size = replace(size, largest_share=max(counts) / max(1, total))
                call.estimate, call.counted = _counted(call, services, total, size), True
        elif not (sure and _hopeless(call, context, limit)):
            return  # an estimate alone refuses nothing that might fit: checked again once granted
    refuse_over(call.estimate, parsed, context, limit)


def _most(call: Call, services: Services) -> Estimate:
    """Return the most that a request may need, however its text is tokenized."""
    calibration = services.estimator.calibration(call.model.name)
    size = prompt_size(call.parsed)
    return _counted(call, services, calibration.most_prompt_tokens(size), size)


def _counted(call: Call, services: Services, prompt_tokens: int, size: PromptSize) -> Estimate:
    return services.estimator.counted(
        prompt_tokens,
        size,
        max_tokens=call.parsed.max_tokens,
        n=call.parsed.choices,
        context_tokens=services.context_tokens(call.model),
    )


def _hopeless(call: Call, context: int, limit: int) -> bool:
    """Tell whether a request is too large even if the estimate is four times too high.

    No model is loaded, and no other one unloaded, only to refuse it then.
    """
    estimate, wanted = call.estimate, max(call.parsed.max_tokens or 0, 0)
    largest = (estimate.context_tokens - estimate.completion_tokens) // 4
    if context and largest + wanted > context:
        return True
    return 0 < limit < estimate.prompt_tokens // 4 + wanted * estimate.sequences


def _over(estimate: Estimate, context_tokens: int, limit_tokens: int) -> bool:
    """Tell whether a request is too large; 0 is no bound."""
    return 0 < context_tokens < estimate.context_tokens or (
        0 < limit_tokens < estimate.total_tokens
    )


def refuse_over(
    estimate: Estimate, parsed: schema.ParsedRequest, context_tokens: int, limit_tokens: int
) -> None:
    """Refuse a request that is too large; 0 is no bound.

    Raises:
        ContextLengthExceeded: Prompt and `max_tokens` are more than the context can be.
        InvalidRequest: They are more than `limits.max_tokens_per_request`.
    """
    asks = estimate.completion_tokens > estimate.prompt_tokens
    param = "max_tokens" if asks else parsed.kind.prompt.value
    if 0 < context_tokens < estimate.context_tokens:
        largest = estimate.context_tokens - estimate.completion_tokens
        what = "its longest prompt" if parsed.prompts > 1 else "prompt"
        raise errors.ContextLengthExceeded(
            f"the model's context is {context_tokens} tokens, and this request needs "
            f"{estimate.context_tokens}: {largest} of {what} and "
            f"{estimate.completion_tokens} of completion; shorten the messages or lower "
            "max_tokens",
            param=param,
        )
    if 0 < limit_tokens < estimate.total_tokens:
        raise errors.InvalidRequest(
            f"this request may use {estimate.total_tokens} tokens, and one request may use "
            f"{limit_tokens} (limits.max_tokens_per_request); shorten it or lower max_tokens",
            param="max_tokens",
        )


def prompt_size(parsed: schema.ParsedRequest) -> PromptSize:
    """Return what is known of a request's prompts before anything is tokenized."""
    return PromptSize(
        text_bytes=parsed.prompt_bytes,
        messages=parsed.messages if parsed.kind.prompt is Prompt.MESSAGES else 0,
        images=parsed.images,
        prompts=parsed.prompts,
        largest_share=parsed.largest_prompt_bytes / max(1, parsed.prompt_bytes),
    )
