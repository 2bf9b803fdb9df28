"""How many tokens a request will cost, guessed from the length of its text.

Tokenizing is the worker's business, and the worker may not even be loaded yet. What decides
limits and places in the queue is therefore an estimate that each model's own measurements correct:

    prompt tokens = given ids + images x IMAGE + messages x MESSAGE
                    + prompts x overhead + text bytes x tokens per byte

`overhead` (what the chat template adds) and `tokens per byte` are learned together by normalized
least mean squares: the error of a short prompt moves the overhead, that of a long one the rate.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_TOKENS = 1024
"""What one image counts; projectors make some 250 to 1,500 tokens of one."""

MESSAGE_TOKENS = 4
"""What the template writes around one message: role and delimiters."""

UNKNOWN_CONTEXT_TOKENS = 32768
"""The context that is assumed for a model that nothing is known of yet."""

_START_BYTES_PER_TOKEN = 3.5
_MIN_TOKENS_PER_BYTE = 1 / 32
_MAX_TOKENS_PER_BYTE = 2.0
_MAX_OVERHEAD_TOKENS = 4096.0
_SCALE_BYTES = 400.0  # a prompt this long blames overhead and rate in equal parts
_UNSURE = 4.0  # how far the length of a text may mislead about its tokens
_STEP = 0.2  # share of an error that one measurement corrects, once there were a few


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What is known of a request's prompts before anything is tokenized.

    Attributes:
        text_bytes: UTF-8 bytes of all text that the model will read, tool descriptions included.
        messages: Chat messages; 0 for a plain prompt.
        images: Images (and other media) in the messages.
        ids: Tokens of prompts that were given as token ids.
        prompts: Entries of a prompt array; 1 otherwise.
        largest_share: Part of the text in the longest of the prompts, 0 to 1.
    """

    text_bytes: int
    messages: int = 0
    images: int = 0
    ids: int = 0
    prompts: int = 1
    largest_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request is counted with.

    Attributes:
        prompt_tokens: All its prompts together, each once.
        completion_tokens: The most that one sequence may produce.
        context_tokens: What its largest sequence needs: that prompt and its completion.
        sequences: Answers that are generated: prompts times `n`.
        total_tokens: What limits and queue count: prompt and completion of every sequence.
    """

    prompt_tokens: int
    completion_tokens: int
    context_tokens: int
    sequences: int
    total_tokens: int


class Calibration:
    """What measurements say about one model's tokens. One writer; a microsecond or two a call."""

    __slots__ = ("_overhead", "_seen", "_tokens_per_byte")

    def __init__(self) -> None:
        self._tokens_per_byte = 1 / _START_BYTES_PER_TOKEN
        self._overhead = 8.0
        self._seen = 0

    def __repr__(self) -> str:
        return (
            f"Calibration(bytes_per_token={self.bytes_per_token:.2f}, "
            f"overhead={self._overhead:.0f}, seen={self._seen})"
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that make one token, as far as is known."""
        return 1 / self._tokens_per_byte

    @property
    def seen(self) -> int:
        """Measurements so far."""
        return self._seen

    def prompt_tokens(self, size: PromptSize) -> int:
        """Return the estimate for all prompts of a request together; at least 1."""
        return max(1, round(self._fixed(size) + self._learned(size)))

    def most_prompt_tokens(self, size: PromptSize) -> int:
        """Return how many tokens the prompts may really have, if the text is an unusual one."""
        return max(1, round(self._fixed(size) + _UNSURE * self._learned(size)))

    def observe(self, size: PromptSize, measured_tokens: int) -> None:
        """Learn from what the worker counted.

        Args:
            size: The request's, as it was estimated.
            measured_tokens: `usage.prompt_tokens`, which includes what came from the cache.

        What says nothing about text (images, token ids alone, nonsense counts) is ignored. One
        measurement corrects a bounded share of the error, so that a client with strange text
        cannot spoil the estimates of the others.
        """
        if measured_tokens <= 0 or size.images or not size.text_bytes:
            return
        prompts = max(1, size.prompts)
        error = (measured_tokens - self._fixed(size) - self._learned(size)) / prompts
        step = max(_STEP, 1 / (self._seen + 2))
        weight = size.text_bytes / prompts / _SCALE_BYTES
        correction = step * error / (1 + weight * weight)
        self._overhead = min(max(self._overhead + correction, 0.0), _MAX_OVERHEAD_TOKENS)
        self._tokens_per_byte = min(
            max(self._tokens_per_byte + correction * weight / _SCALE_BYTES, _MIN_TOKENS_PER_BYTE),
            _MAX_TOKENS_PER_BYTE,
        )
        self._seen += 1

    @staticmethod
    def _fixed(size: PromptSize) -> int:
        return size.ids + size.images * IMAGE_TOKENS + size.messages * MESSAGE_TOKENS

    def _learned(self, size: PromptSize) -> float:
        if not size.text_bytes:
            return 0.0
        return size.prompts * self._overhead + size.text_bytes * self._tokens_per_byte


class TokenEstimator:
    """The calibrations of all models, and the rule for a whole request.

    Args:
        default_max_tokens: Completion that is counted for a request that names none.
    """

    def __init__(self, default_max_tokens: int) -> None:
        self._default_max_tokens = default_max_tokens
        self._models: dict[str, Calibration] = {}

    def calibration(self, model: str) -> Calibration:
        """Return a model's calibration, made on first use. `model` is a name of the catalog."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Calibration()
        return found

    def observe(self, model: str, size: PromptSize, measured_tokens: int) -> None:
        """Learn from a request that `model` has counted; see `Calibration.observe`."""
        self.calibration(model).observe(size, measured_tokens)

    def estimate(
        self,
        model: str,
        size: PromptSize,
        *,
        max_tokens: int | None,
        n: int = 1,
        context_tokens: int = 0,
    ) -> Estimate:
        """Estimate a request.

        Args:
            model: A name of the catalog.
            size: Its prompts.
            max_tokens: As asked for. None counts `default_max_tokens`, or less where the context
                leaves less; a negative one (llama.cpp's "until it ends") counts all that the
                context leaves. 0 for what generates nothing, such as embeddings.
            n: Answers per prompt.
            context_tokens: The most context that one sequence can have; 0 = unknown.
        """
        return self.counted(
            self.calibration(model).prompt_tokens(size),
            size,
            max_tokens=max_tokens,
            n=n,
            context_tokens=context_tokens,
        )

    def counted(
        self,
        prompt_tokens: int,
        size: PromptSize,
        *,
        max_tokens: int | None,
        n: int = 1,
        context_tokens: int = 0,
    ) -> Estimate:
        """As `estimate`, with `prompt_tokens` for all prompts counted by the worker."""
        prompts, answers = max(1, size.prompts), max(1, n)
        sequences = prompts * answers
        largest = prompt_tokens
        if prompts > 1:
            mean = prompt_tokens / prompts
            largest = max(round(prompt_tokens * min(size.largest_share, 1.0)), round(mean))
        left = max(0, (context_tokens or UNKNOWN_CONTEXT_TOKENS) - largest)
        if max_tokens is None:
            completion = min(self._default_max_tokens, left)
        elif max_tokens < 0:
            completion = left
        else:
            completion = max_tokens
        return Estimate(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion,
            context_tokens=largest + completion,
            sequences=sequences,
            total_tokens=prompt_tokens * answers + completion * sequences,
        )
