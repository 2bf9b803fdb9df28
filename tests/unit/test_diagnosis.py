"""Why a worker ended: the words of real llama-servers, and whether trying again can help."""

from __future__ import annotations

import pytest

from llmd.workers.diagnosis import (
    MAX_REASON_CHARS,
    ExitCause,
    diagnose_exit,
    diagnose_spawn,
    exit_words,
    last_words,
)

MISSING = """\
0.00.006.830 I srv    load_model: loading model '/tmp/gone.gguf'
0.00.007.017 E gguf_init_from_file: failed to open GGUF file '/tmp/gone.gguf' (No such file or directory)
0.00.007.146 E llama_model_load: error loading model: llama_model_loader: failed to load model from /tmp/gone.gguf
0.00.007.275 I srv    operator(): operator(): cleaning up before exit...
0.00.007.896 E srv  llama_server: exiting due to model loading error"""  # noqa: E501
BAD_MAGIC = """\
0.00.005.040 E common_fit_params: encountered an error while trying to fit params to free device memory: failed to load model
0.00.005.048 E gguf_init_from_reader: invalid magic characters: '?o??', expected 'GGUF'
0.00.005.053 E llama_model_load: error loading model: llama_model_loader: failed to load model from bad.gguf"""  # noqa: E501
TRUNCATED = """\
0.00.008.102 E llama_model_load: error loading model: tensor 'output.weight' data is not within the file bounds, model is corrupted or incomplete
0.00.008.106 E llama_model_load_from_file_impl: failed to load model"""  # noqa: E501
EMPTY = """\
0.00.005.219 E gguf_init_from_reader: failed to read magic
0.00.005.225 E llama_model_load: error loading model: llama_model_loader: failed to load model"""
BAD_FLAG = "error: invalid argument: --nosuch"
BAD_VALUE = """\
error while handling argument "-c": stoi

usage:
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)


to show complete usage, run with -h"""  # noqa: E501
BAD_TEMPLATE = "error: the supplied chat template is not supported: {% broken"
NO_LORA = "0.0.1.2 E llama_adapter_lora_init: failed to open '/x.gguf': No such file or directory"
NO_CLIP = "0.0.1.2 E clip_init: failed to load CLIP model from /nonexist. Does this file exist?"
NO_LIBRARY = "llama-server: error while loading shared libraries: libcuda.so.1: cannot open"
UNKNOWN_ARCH = "E llama_model_load: error loading model: unknown model architecture: 'zz9'"
OUT_OF_MEMORY = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory
E llama_model_load: error loading model: unable to allocate CUDA0 buffer
E srv    load_model: failed to load model, '/m.gguf'"""  # noqa: E501
NO_BIND = "0.0.1.2 E srv start: couldn't bind HTTP server socket, hostname: /run/x.sock, port: 8080"
NO_NETWORK = "0.0.1.2 E common_download: HTTPLIB failed: Could not establish connection"


def diagnose(text, status=1, was_ready=False):
    return diagnose_exit(status, text.splitlines(), was_ready=was_ready)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MISSING, "No such file or directory"),
        (BAD_MAGIC, "expected 'GGUF'"),
        (TRUNCATED, "corrupted or incomplete"),
        (EMPTY, "failed to read magic"),
        (BAD_FLAG, "--nosuch"),
        (BAD_VALUE, '"-c": stoi'),
        (BAD_TEMPLATE, "chat template"),
        (NO_LORA, "/x.gguf"),
        (NO_CLIP, "CLIP"),
        (NO_LIBRARY, "libcuda.so.1"),
        (UNKNOWN_ARCH, "zz9"),
    ],
)
def test_what_will_not_change_is_permanent_and_says_why(text, says):
    found = diagnose(text)
    assert found.permanent
    assert found.cause is ExitCause.REFUSED
    assert says in found.reason
    assert "code 1" in found.reason


@pytest.mark.parametrize("text", [OUT_OF_MEMORY, NO_BIND, NO_NETWORK, "", "boom"])
def test_what_may_change_is_tried_again(text):
    found = diagnose(text)
    assert not found.permanent
    assert found.cause is ExitCause.EXITED


@pytest.mark.parametrize("text", [MISSING, BAD_MAGIC, BAD_FLAG])
def test_what_has_served_before_is_never_at_fault_for_good(text):
    assert not diagnose(text, was_ready=True).permanent


@pytest.mark.parametrize("text", [MISSING, BAD_MAGIC])
def test_a_signal_is_a_crash_whatever_was_said(text):
    found = diagnose(text, status=-9)
    assert not found.permanent
    assert found.cause is ExitCause.KILLED
    assert "SIGKILL" in found.reason


def test_another_processors_binary_will_never_run():
    assert diagnose("", status=-4).permanent


def test_the_reason_is_bounded_and_leaves_out_the_noise():
    found = diagnose(("x" * 5000 + " failed\n") * 50)
    assert len(found.reason) <= MAX_REASON_CHARS
    assert "exiting due to" not in diagnose(MISSING).reason
    assert "0.00.007" not in diagnose(MISSING).reason


def test_the_same_line_is_quoted_once():
    assert diagnose(MISSING + "\n" + MISSING).reason.count("No such file") == 1


def test_last_words_prefer_errors_and_never_fall_silent():
    assert last_words(["a", "it failed", "b"]) == ("it failed",)
    assert last_words(["a", "b", "c", "d"]) == ("b", "c", "d")
    assert last_words(["exiting due to: no init"]) == ("exiting due to: no init",)
    assert last_words([]) == ()


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with code 0"), (-11, "was killed by SIGSEGV"), (-99, "was killed by signal 99")],
)
def test_exit_words(status, words):
    assert exit_words(status) == words


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (FileNotFoundError(2, "No such file or directory"), True),
        (PermissionError(13, "Permission denied"), True),
        (OSError(8, "Exec format error"), True),
        (OSError(12, "Cannot allocate memory"), False),
        (OSError(24, "Too many open files"), False),
        (BlockingIOError(11, "Resource temporarily unavailable"), False),
    ],
)
def test_what_cannot_be_spawned(error, permanent):
    found = diagnose_spawn(error, "/usr/bin/llama-server")
    assert found.permanent is permanent
    assert found.cause is ExitCause.UNSTARTABLE
    assert "/usr/bin/llama-server" in found.reason


@pytest.mark.parametrize(
    "line",
    [
        "0.00.003.517 E get_repo_commit: error: HTTPLIB failed: Could not establish connection",
        "0.00.003.570 W get_repo_files: failed to resolve commit for o/None-GGUF",
        "0.00.006.519 E common_download_get_hf_plan: no GGUF files found in repository o/x-GGUF",
    ],
)
def test_what_follows_from_a_failed_download_is_not_told_as_the_reason(line):
    after = [
        "0.00.007.875 E llama_model_load_from_file_impl: exactly one out metadata, path_model",
        "0.00.005.555 E gguf_init_from_file: failed to open GGUF file 'o/x' (No such file or d",
    ]
    found = diagnose_exit(1, [line, *after], was_ready=False)
    assert found.permanent
    assert found.reason.startswith("the model could not be fetched; ")
    assert line.split(" ", 2)[2] in found.reason
