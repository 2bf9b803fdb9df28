"""`llmd serve` and `llmd demo` as processes: log, limits, and the event loop around the daemon."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import subprocess
import sys
from functools import partial

import msgspec
import trio

from llmd.config import Loaded, ModelConfig
from llmd.config.places import state_dir
from llmd.daemon import Bound, serve
from llmd.errors import ConfigError
from llmd.observe.log import log, setup

_log = logging.getLogger("llmd")
_YOUNG_OBJECTS = 10_000


def run_serve(loaded: Loaded) -> int:
    """Run `llmd serve` and return its exit status.

    Raises:
        ConfigError: What is configured cannot be served.
    """
    setup(loaded.config.log.level, loaded.config.log.format)
    for warning in loaded.warnings:
        log(_log, warning, logging.WARNING)
    _prepare_process()
    trio.run(serve, loaded.config, strict_exception_groups=True)
    return 0


def run_demo(loaded: Loaded) -> int:
    """Run `llmd demo`: two tiny models, written here, and what to try with them.

    Args:
        loaded: All settings but the models.

    Raises:
        ConfigError: The models cannot be written, or what is configured cannot be served.
    """
    directory = state_dir(os.environ) / "demo"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError([f"the demo models cannot be written to {directory}: {why}"]) from error
    # in a process of its own: numpy and gguf would stay in the daemon's memory for good
    written = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "llmd.models.demo", str(directory)], check=False
    )
    if written.returncode:
        raise ConfigError([f"the demo models could not be written to {directory}"])
    config = msgspec.structs.replace(
        loaded.config,
        # one thread: two that wait for each other by spinning starve a small box
        models=tuple(
            ModelConfig(name=name, path=str(directory / f"{name}.gguf"), threads=1)
            for name in ("demo-small", "demo-large")
        ),
    )
    setup(config.log.level, config.log.format)
    _prepare_process()
    trio.run(partial(serve, config, task_status=_DemoGuide()), strict_exception_groups=True)
    return 0


class _DemoGuide:
    """Says what to try once the demo listens."""

    def started(self, value: Bound | None = None) -> None:
        assert value is not None
        sys.stdout.write(_DEMO.format(url=value.url))
        sys.stdout.flush()


def _prepare_process() -> None:
    """Set what holds for a whole process, and so is nobody else's to set."""
    _raise_descriptor_limit()
    # Nearly all that a request makes dies by its reference count. By default the search for what
    # does not begins every few requests, and now and then goes through every module of the program:
    # 60 ms in which nobody is served.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as are allowed: each client costs one, or two while it is served."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_DEMO = """
llmd serves two tiny models with random weights at {url}: their answers mean nothing.
Try, in another terminal:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model":"demo-small","messages":[{{"role":"user","content":"Hello"}}],"max_tokens":40}}'

or, with `pip install openai`:

  from openai import OpenAI

  client = OpenAI(base_url="{url}/v1", api_key="none-needed")
  for chunk in client.chat.completions.create(
      model="demo-large",
      messages=[{{"role": "user", "content": "Hello"}}],
      max_tokens=40,
      stream=True,
  ):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

Asking for the other model switches to it. To watch and steer: llmtui, llmctl status, llmctl watch,
llmctl why ID (started as llmd was: with `uv run` before it, or without). Over HTTP: {url}/requests,
{url}/v1/models, {url}/queue/metrics, {url}/metrics. Ctrl+C ends the demo.

"""
