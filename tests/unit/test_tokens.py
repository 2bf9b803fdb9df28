"""The estimates that limits and the queue count with, and how measurements correct them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmd.core.tokens import (
    IMAGE_TOKENS,
    UNKNOWN_CONTEXT_TOKENS,
    Calibration,
    PromptSize,
    TokenEstimator,
)

sizes = st.builds(
    PromptSize,
    text_bytes=st.integers(0, 10_000_000),
    messages=st.integers(0, 1000),
    images=st.integers(0, 10),
    ids=st.integers(0, 100_000),
    prompts=st.integers(1, 64),
    largest_share=st.floats(0, 1),
)


def test_an_unmeasured_model_starts_cautious():
    tokens = Calibration().prompt_tokens(PromptSize(text_bytes=3500, messages=1))
    assert 1000 <= tokens <= 1050


def test_it_learns_rate_and_overhead_together():
    calibration = Calibration()
    truth = {"rate": 1 / 1.2, "overhead": 40}
    for text_bytes in [20, 4000, 200, 900, 50, 12000] * 20:
        measured = round(truth["overhead"] + 4 + text_bytes * truth["rate"])
        calibration.observe(PromptSize(text_bytes=text_bytes, messages=1), measured)
    for text_bytes in (10, 500, 20000):
        exact = truth["overhead"] + 4 + text_bytes * truth["rate"]
        estimate = calibration.prompt_tokens(PromptSize(text_bytes=text_bytes, messages=1))
        assert abs(estimate - exact) <= max(3, 0.05 * exact)


def test_short_prompts_under_a_long_template_leave_the_rate_alone():
    calibration = Calibration()
    for _ in range(200):
        calibration.observe(PromptSize(text_bytes=2, messages=1), 300)
    assert abs(calibration.bytes_per_token - 3.5) < 0.5
    assert abs(calibration.prompt_tokens(PromptSize(text_bytes=2, messages=1)) - 300) <= 2


def test_one_strange_prompt_moves_a_settled_estimate_by_a_bounded_share():
    calibration = Calibration()
    for _ in range(50):
        calibration.observe(PromptSize(text_bytes=4000), 1000)
    before = calibration.prompt_tokens(PromptSize(text_bytes=4000))
    calibration.observe(PromptSize(text_bytes=4000), 4000)
    after = calibration.prompt_tokens(PromptSize(text_bytes=4000))
    assert before < after <= before + 0.21 * 3000


def test_what_says_nothing_about_text_teaches_nothing():
    calibration = Calibration()
    calibration.observe(PromptSize(text_bytes=100, images=1), 5000)
    calibration.observe(PromptSize(text_bytes=0, ids=100), 100)
    calibration.observe(PromptSize(text_bytes=100), 0)
    calibration.observe(PromptSize(text_bytes=100), -1)
    assert calibration.seen == 0


def test_token_ids_and_images_count_by_themselves():
    calibration = Calibration()
    assert calibration.prompt_tokens(PromptSize(text_bytes=0, ids=123)) == 123
    text = calibration.prompt_tokens(PromptSize(text_bytes=100))
    with_images = calibration.prompt_tokens(PromptSize(text_bytes=100, images=2))
    assert with_images == text + 2 * IMAGE_TOKENS


def test_models_learn_apart():
    estimator = TokenEstimator(512)
    for _ in range(20):
        estimator.observe("a", PromptSize(text_bytes=1000), 1000)
    assert estimator.calibration("a").bytes_per_token < 1.5
    assert estimator.calibration("b").bytes_per_token == 3.5


def test_total_is_prompt_and_completion_for_every_sequence():
    estimate = TokenEstimator(512).counted(100, PromptSize(text_bytes=1), max_tokens=50, n=3)
    assert estimate.sequences == 3
    assert estimate.total_tokens == (100 + 50) * 3
    assert estimate.context_tokens == 150


def test_a_prompt_array_counts_each_prompt_once_and_each_completion():
    size = PromptSize(text_bytes=400, prompts=4, largest_share=0.7)
    estimate = TokenEstimator(512).counted(100, size, max_tokens=10, n=2)
    assert estimate.sequences == 8
    assert estimate.total_tokens == 100 * 2 + 10 * 8
    assert estimate.context_tokens == 70 + 10


def test_no_max_tokens_counts_the_default_but_never_more_than_the_context_leaves():
    estimator, size = TokenEstimator(512), PromptSize(text_bytes=1)
    counted = estimator.counted
    assert counted(100, size, max_tokens=None, context_tokens=4096).completion_tokens == 512
    assert counted(100, size, max_tokens=None, context_tokens=256).completion_tokens == 156
    assert counted(300, size, max_tokens=None, context_tokens=256).completion_tokens == 0
    # what was asked for is counted as asked, so that the refusal can say it
    assert counted(100, size, max_tokens=512, context_tokens=256).context_tokens == 612


def test_minus_one_counts_the_remaining_context():
    estimator, size = TokenEstimator(512), PromptSize(text_bytes=1)
    known = estimator.counted(100, size, max_tokens=-1, context_tokens=4096)
    assert known.total_tokens == known.context_tokens == 4096
    unknown = estimator.counted(100, size, max_tokens=-1)
    assert unknown.context_tokens == UNKNOWN_CONTEXT_TOKENS


def test_embeddings_generate_nothing():
    estimate = TokenEstimator(512).estimate("e", PromptSize(text_bytes=350), max_tokens=0)
    assert estimate.completion_tokens == 0
    assert estimate.total_tokens == estimate.prompt_tokens


@given(
    learned=st.lists(st.tuples(sizes, st.integers(-10, 10**9)), max_size=30),
    size=sizes,
    max_tokens=st.none() | st.integers(-2, 10**6),
    n=st.integers(1, 16),
    context=st.integers(0, 10**6),
)
def test_whatever_was_measured_the_estimates_stay_sane(learned, size, max_tokens, n, context):
    estimator = TokenEstimator(512)
    for seen, measured in learned:
        estimator.observe("m", seen, measured)
    longer = PromptSize(
        text_bytes=size.text_bytes + 1000,
        messages=size.messages,
        images=size.images,
        ids=size.ids,
        prompts=size.prompts,
    )
    calibration = estimator.calibration("m")
    assert 0.5 <= calibration.bytes_per_token <= 32
    assert calibration.prompt_tokens(longer) >= calibration.prompt_tokens(size) >= 1
    found = estimator.estimate("m", size, max_tokens=max_tokens, n=n, context_tokens=context)
    assert found.completion_tokens >= 0
    assert found.sequences == size.prompts * n
    assert found.total_tokens >= found.prompt_tokens * n
    assert found.context_tokens <= found.prompt_tokens + found.completion_tokens
