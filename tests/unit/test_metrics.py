"""Every series fed, labels bounded, pages that Prometheus' own parsers read."""

from __future__ import annotations

import math
import subprocess
import sys

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from llmd.core.lifecycle import Priority, RequestState, WorkerState
from llmd.core.record import CancelCause, RequestRecord
from llmd.observe.exposition import Counter, Histogram, encode, wants_openmetrics
from llmd.observe.metrics import Metrics, QueueSample, WorkerSample
from llmd.observe.workerseries import MAX_FAMILIES, MAX_SAMPLES, MAX_TEXT_BYTES

S = RequestState
WORKER_TEXT = b"""\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 42
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
llamacpp:predicted_tokens_seconds 1.5e+02
"""


def metrics(**more) -> Metrics:
    return Metrics(
        version="1.2.3",
        is_model={"qwen", 'we"ird\\', "caf\udce9"}.__contains__,
        is_key={"alice"}.__contains__,
        **more,
    )


def samples(made: Metrics, texts=None) -> dict[tuple[str, tuple[str, ...]], float | str]:
    """Render both formats, hold them together, and return one of them, parsed."""
    found = []
    for openmetrics, parse in ((False, parse_text), (True, parse_openmetrics)):
        page, kind = made.render(texts, openmetrics=openmetrics)
        assert ("openmetrics" in kind) is openmetrics
        held = {}
        names = []
        for family in parse(page.decode()):
            names.append(family.name)
            for sample in family.samples:
                key = (sample.name, tuple(v for _, v in sorted(sample.labels.items())))
                assert key not in held
                held[key] = sample.value if sample.value == sample.value else "NaN"
        assert len(names) == len(set(names))
        found.append(held)
    assert found[0] == found[1]
    return found[0]


def record(**fields) -> RequestRecord:
    fields = {"key": "alice", "model": "qwen"} | fields
    return RequestRecord(id="r", received=100.0, created=1.7e9, **fields)


def done() -> RequestRecord:
    made = record(prompt_tokens=20, completion_tokens=11, cached_tokens=5, priority=Priority.HIGH)
    made.enqueue(100.0)
    made.grant(100.3)
    made.first_byte(100.6)
    made.end(S.DONE, 101.6, status=200)
    return made


def test_a_finished_request_feeds_every_series_of_its_way():
    made = metrics()
    made.finished(done())
    made.finished(done())
    page = samples(made)
    assert page["llmd_requests_total", ("200", "qwen", "done")] == 2
    assert page["llmd_tokens_total", ("prompt", "qwen")] == 40
    assert page["llmd_tokens_total", ("completion", "qwen")] == 22
    assert page["llmd_tokens_total", ("cached", "qwen")] == 10
    for name, labels, total_s in (
        ("llmd_queue_seconds", ("high", "qwen"), 0.6),
        ("llmd_time_to_first_token_seconds", ("qwen",), 1.2),
        ("llmd_time_per_output_token_seconds", ("qwen",), 0.2),
        ("llmd_request_seconds", ("qwen", "done"), 3.2),
    ):
        assert page[f"{name}_count", labels] == 2
        assert page[f"{name}_sum", labels] == pytest.approx(total_s)
    assert page["llmd_time_to_first_token_seconds_bucket", ("0.5", "qwen")] == 0
    assert page["llmd_time_to_first_token_seconds_bucket", ("1.0", "qwen")] == 2
    assert not [key for key in page if key[0] == "llmd_refused_total"]


def test_the_tokens_of_a_request_that_was_cut_off_count_too():
    made = metrics()
    gone = record(prompt_estimate_tokens=40)
    gone.grant(101.0)
    gone.prefill(50, 50, 10)
    gone.first_byte(102.0)
    gone.events = 7
    gone.end(S.ABANDONED, 103.0, status=499, cause=CancelCause.CLIENT_GONE)
    made.finished(gone)
    page = samples(made)
    assert page["llmd_tokens_total", ("prompt", "qwen")] == 50
    assert page["llmd_tokens_total", ("completion", "qwen")] == 7
    assert page["llmd_tokens_total", ("cached", "qwen")] == 10


def test_refusals_and_cancels_are_counted_from_the_record():
    made = metrics()
    refused = record()
    refused.end(S.REFUSED, 100.1, status=503, code="queue_full")
    made.finished(refused)
    gone = record()
    gone.enqueue(100.0)
    gone.end(S.ABANDONED, 104.0, status=499, cause=CancelCause.CLIENT_GONE)
    made.finished(gone)
    page = samples(made)
    assert page["llmd_refused_total", ("alice", "queue_full")] == 1
    assert page["llmd_requests_total", ("503", "qwen", "refused")] == 1
    assert page["llmd_cancels_total", ("client_gone",)] == 1
    assert page["llmd_cancels_total", ("operator",)] == 0
    assert page["llmd_queue_seconds_sum", ("normal", "qwen")] == 4.0
    assert ("llmd_time_to_first_token_seconds_count", ("qwen",)) not in page


def test_what_clients_make_up_never_becomes_a_label():
    made = metrics()
    for i in range(300):
        made.refused(f"key{i}", f"reason{i}")
        strange = record(key=f"key{i}", model=f"model{i}")
        strange.end(S.REFUSED, 100.0, status=400 + i, code=f"code {i}\n" + "x" * 100)
        made.finished(strange)
        made.worker_exited(f"model{i}", f"exit {i}")
    page = samples(made)
    names = {label for _, labels in page for label in labels}
    assert not names & {f"key{i}" for i in range(300)}
    assert not names & {f"model{i}" for i in range(300)}
    assert {"invalid", "unknown", "other"} <= names
    assert len([key for key in page if key[0] == "llmd_refused_total"]) <= 102
    assert page["llmd_requests_total", ("other", "unknown", "refused")] == 100


def test_anonymous_is_a_key_of_its_own():
    made = metrics()
    made.refused("anonymous", "rate_limit_exceeded")
    made.refused("", "invalid_api_key")
    page = samples(made)
    assert page["llmd_refused_total", ("anonymous", "rate_limit_exceeded")] == 1
    assert page["llmd_refused_total", ("invalid", "invalid_api_key")] == 1


def test_workers_feed_theirs():
    made = metrics()
    made.worker_started("qwen", "demand")
    made.worker_ready("qwen", 0.25)
    made.worker_exited("qwen", "signal 9")
    made.evicted("qwen", "max_delay")
    made.slot_reclaimed(0.004)
    page = samples(made)
    assert page["llmd_worker_starts_total", ("qwen", "demand")] == 1
    assert page["llmd_model_load_seconds_sum", ("qwen",)] == 0.25
    assert page["llmd_worker_exits_total", ("signal_9", "qwen")] == 1
    assert page["llmd_evictions_total", ("qwen", "max_delay")] == 1
    assert page["llmd_slot_reclaim_seconds_bucket", ("0.005",)] == 1
    assert page["llmd_slot_reclaim_seconds_bucket", ("0.0025",)] == 0


def test_what_is_true_just_now_is_asked_for_at_the_scrape():
    depth = {("qwen", Priority.LOW): 3}
    workers = [WorkerSample("qwen", WorkerState.READY, {"cpu": 1 << 30})]
    made = metrics(
        queue=lambda: QueueSample(depth=depth, tokens=900, running={"qwen": 2}),
        workers=lambda: workers,
    )
    page = samples(made)
    assert page["llmd_queue_depth", ("low", "qwen")] == 3
    assert page["llmd_queue_depth", ("high", "qwen")] == 0
    assert page["llmd_queue_tokens", ()] == 900
    assert page["llmd_running", ("qwen",)] == 2
    assert page["llmd_worker_state", ("qwen", "ready")] == 1
    assert page["llmd_worker_state", ("qwen", "failed")] == 0
    assert page["llmd_worker_memory_bytes", ("cpu", "qwen")] == 1 << 30
    depth[("qwen", Priority.LOW)] = 1
    workers[0] = WorkerSample("qwen", WorkerState.FAILED)
    page = samples(made)
    assert page["llmd_queue_depth", ("low", "qwen")] == 1
    assert page["llmd_worker_state", ("qwen", "failed")] == 1
    assert not [key for key in page if key[0] == "llmd_worker_memory_bytes"]


def test_an_idle_daemon_shows_what_it_is():
    page = samples(metrics())
    assert page["llmd_build_info", ("1.2.3",)] == 1
    assert page["llmd_queue_tokens", ()] == 0


def test_histograms_start_at_a_millisecond_and_end_at_infinity():
    made = metrics()
    made.finished(done())
    made.slot_reclaimed(99.0)
    made.worker_ready("qwen", 5000.0)
    buckets: dict[tuple[str, tuple[str, ...]], list[tuple[float, float]]] = {}
    for family in parse_text(made.render()[0].decode()):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = dict(sample.labels)
                end = float(labels.pop("le"))
                buckets.setdefault((family.name, tuple(labels.values())), []).append(
                    (end, sample.value)
                )
    assert len(buckets) == 6
    for held in buckets.values():
        assert held[0][0] == 0.001
        assert held[-1][0] == math.inf
        assert held == sorted(held)
        assert [count for _, count in held] == sorted(count for _, count in held)
        assert held[-1][1] == 1


@pytest.mark.parametrize(("name", "shown"), [('we"ird\\',) * 2, ("caf\udce9", "caf\\udce9")])
def test_names_of_models_are_escaped(name, shown):
    made = metrics(workers=lambda: [WorkerSample(name, WorkerState.READY)])
    weird = record(model=name)
    weird.end(S.DONE, 101.0, status=200)
    made.finished(weird)
    page = samples(made, {name: WORKER_TEXT})
    assert page["llmd_requests_total", ("200", shown, "done")] == 1
    assert page["llmd_worker_state", (shown, "ready")] == 1
    assert page["llamacpp:requests_processing", (shown,)] == 1


# --- the workers' own series ---------------------------------------------------------------


def test_workers_series_get_their_model():
    page = samples(metrics(), {"qwen": WORKER_TEXT, 'we"ird\\': WORKER_TEXT})
    assert page["llamacpp:prompt_tokens_total", ("qwen",)] == 42
    assert page["llamacpp:prompt_tokens_total", ('we"ird\\',)] == 42
    assert page["llamacpp:requests_processing", ("qwen",)] == 1
    assert page["llamacpp:predicted_tokens_seconds", ("qwen",)] == 150
    text = metrics().render({"a": WORKER_TEXT, "b": WORKER_TEXT})[0].decode()
    assert text.count("# TYPE llamacpp:prompt_tokens_total counter\n") == 1
    assert text.count("# HELP llamacpp:prompt_tokens_total ") == 1
    assert "llamacpp:" not in metrics().render()[0].decode()


@pytest.mark.parametrize(
    "line",
    [
        b"llmd_requests_total 99",
        b"process_cpu 1",
        b"llamacpp:x",
        b"llamacpp:x one",
        b"llamacpp:x 1_000",
        b"llamacpp:x 0x10",
        b"llamacpp:x{ 1",
        b"llamacpp:x{a=b} 1",
        b'llamacpp:x{a="b} 1',
        b'llamacpp:x{a="b",a="c"} 1',
        b'llamacpp:x{a="b"c="d"} 1',
        b'llamacpp:x{__name__="llmd_requests_total"} 1',
        b"llamacpp:x-y 1",
        b"llamacpp:x " + b"1" * 2000,
        b'llamacpp:x{a="' + b"b" * 900 + b'"} 1',
        b"# TYPE llamacpp:x counter\r\nllamacpp:x{\x00} 1",
        b"\xff\xfe llamacpp:x 1",
    ],
)
def test_malformed_lines_are_left_out_and_the_rest_stays(line):
    page = samples(metrics(), {"qwen": line + b"\n" + WORKER_TEXT})
    own = {key for key in page if key[0].startswith("llamacpp:")}
    assert len(own) == 3
    assert "llmd_requests_total" not in {name for name, _ in page}


def test_labels_of_a_worker_stay_and_its_word_for_the_model_goes():
    text = b'llamacpp:x{slot="1",model="forged",a="q\\"\\\\\\n\x1b[2J"} 7\nllamacpp:x{slot="1"} 8'
    page, _ = metrics().render({"qwen": text})
    (family,) = [f for f in parse_text(page.decode()) if f.name == "llamacpp:x"]
    assert [sample.labels for sample in family.samples] == [
        {"model": "qwen", "slot": "1", "a": 'q"\\[2J'},
        {"model": "qwen", "slot": "1"},
    ]


def test_a_worker_cannot_give_a_series_twice_or_a_false_type():
    text = (
        b"# TYPE llamacpp:a counter\n# TYPE llamacpp:b_total histogram\n# TYPE llamacpp:a gauge\n"
        b"llamacpp:a 1\nllamacpp:a 2\nllamacpp:b_total 3\n"
        b'llamacpp:c{x="1",y="2"} 1\nllamacpp:c{y="2",x="1"} 2\n'
    )
    page = samples(metrics(), {"qwen": text})
    assert page["llamacpp:a", ("qwen",)] == 1
    assert page["llamacpp:b_total", ("qwen",)] == 3
    assert page["llamacpp:c", ("qwen", "1", "2")] == 1


def test_a_counter_of_a_worker_that_does_not_count_is_passed_on_as_it_is():
    text = WORKER_TEXT.replace(b"total 42", b"total -42") + b"llamacpp:tokens_max 7\n"
    page = samples(metrics(), {"qwen": b"# TYPE llamacpp:tokens_max counter\n" + text})
    assert page["llamacpp:prompt_tokens_total", ("qwen",)] == -42
    assert page["llamacpp:tokens_max", ("qwen",)] == 7


def test_families_of_a_worker_cannot_collide_in_openmetrics():
    text = b"llamacpp:c 1\nllamacpp:c_total 2\nllamacpp:d_total 3\nllamacpp:d_created 4\n"
    kinds = b"# TYPE llamacpp:c_total counter\n# TYPE llamacpp:d_total counter\n"
    page = samples(metrics(), {"qwen": kinds + text, "we": text + kinds})
    assert page["llamacpp:c_total", ("qwen",)] == 2
    assert page["llamacpp:d_created", ("we",)] == 4


def test_a_flood_is_bounded():
    many = b"".join(b"llamacpp:x%d 1\n" % i for i in range(MAX_FAMILIES * 2))
    assert len(samples(metrics(), {"qwen": many})) < MAX_FAMILIES + 20
    deep = b"".join(b'llamacpp:x{a="%d"} 1\n' % i for i in range(MAX_SAMPLES * 2))
    assert len(samples(metrics(), {"qwen": deep})) < MAX_SAMPLES + 20
    long = b"#" * (MAX_TEXT_BYTES - 14) + b"\nllamacpp:x 123456\n"
    assert ("llamacpp:x", ("qwen",)) not in samples(metrics(), {"qwen": long})


FAMILIES = st.sampled_from(["a", "a_total", "a_created", "a_total_total", "a_bucket"])
LINES = st.one_of(
    st.binary(max_size=30).map(lambda data: b"llamacpp:" + data),
    st.sampled_from(WORKER_TEXT.splitlines()),
    st.text(alphabet='llamacpp:{}"\\,=abc 0123456789.eE+-#TYPE\r\t', max_size=40).map(
        lambda text: text.encode()
    ),
    st.builds(
        lambda name, kind: f"# TYPE llamacpp:{name} {kind}".encode(),
        FAMILIES,
        st.sampled_from(["counter", "gauge", "histogram", "summary", "info", "x y"]),
    ),
    st.builds(
        lambda name, value: f"llamacpp:{name} {value}".encode(),
        FAMILIES,
        st.sampled_from(["1", "-1", "NaN", "+Inf", "-Inf", "1e999"]),
    ),
)


@settings(deadline=None)
@given(st.lists(LINES), st.lists(LINES))
def test_whatever_workers_print_the_page_stays_readable(one, other):
    samples(metrics(), {"qwen": b"\n".join(one), "we": b"\n".join(other)})


# --- the library and the formats -----------------------------------------------------------


def test_the_registry_is_our_own():
    made = metrics()
    assert made.registry is not prometheus_client.REGISTRY
    assert made.registry.get_sample_value("llmd_build_info", {"version": "1.2.3"}) == 1
    assert prometheus_client.generate_latest(made.registry) == made.render()[0]
    assert not [m for m in prometheus_client.REGISTRY.collect() if m.name.startswith("llmd")]


def test_nothing_is_imported_before_the_first_scrape():
    script = """
import sys
from llmd.observe.metrics import Metrics
import llmd.daemon
made = Metrics(version="1", is_model=bool, is_key=bool)
made.refused("k", "queue_full")
assert "prometheus_client" not in sys.modules
made.render()
assert "prometheus_client" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_content_types():
    assert metrics().render()[1] == "text/plain; version=0.0.4; charset=utf-8"
    assert (
        metrics()
        .render(openmetrics=True)[1]
        .startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    )


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2", True),
        ("text/html, Application/OpenMetrics-Text", True),
        ("application/openmetrics-textual", False),
    ],
)
def test_accept(accept, wanted):
    assert wants_openmetrics(accept) is wanted


@settings(deadline=None)
@given(
    st.dictionaries(st.tuples(st.text(max_size=10)), st.floats(min_value=0), max_size=5),
    st.lists(st.floats(0, 1e9), min_size=1, max_size=20),
)
def test_any_value_reads_back(values, observed):
    counter = Counter("c_total", "Help \\ with\nbreaks", ("a",))
    counter.values.update(values)
    histogram = Histogram("h", "", (0.001, 1, 1e6))
    for value in observed:
        histogram.observe((), value)
    registry = prometheus_client.CollectorRegistry()

    class Both:
        def collect(self):
            return [counter.family(), histogram.family()]

    registry.register(Both())
    for openmetrics, parse in ((False, parse_text), (True, parse_openmetrics)):
        page, _ = encode(registry, openmetrics=openmetrics)
        families = {family.name: family for family in parse(page.decode())}
        assert families["c"].documentation == "Help \\ with\nbreaks"
        found = {(s.labels["a"],): s.value for s in families["c"].samples}
        assert found == values
        ends = {s.labels.get("le", s.name): s.value for s in families["h"].samples}
        assert ends["1.0"] == len([value for value in observed if value <= 1])
        assert ends["+Inf"] == ends["h_count"] == len(observed)
        assert ends["h_sum"] == pytest.approx(sum(observed))
