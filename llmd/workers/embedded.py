"""The embedded engine: a process that behaves like llama-server, around PyPI's `xllamacpp`.

`python -m llmd.workers.embedded` or `llmd engine`, then llama-server's flags. The HTTP server is
llama.cpp's own, in C++; Python reads the flags, starts it and waits for a signal. Nothing else of
llmd is imported here, because each model load waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from llmd.workers.embedded_flags import GROUPS, Flag, Kind, by_name

_LOG_GRACE_S = 0.2
_DRAFT_TYPE = "COMMON_SPECULATIVE_TYPE_"
# llama.cpp's pattern for the weights of a layer's experts
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


class FlagError(Exception):
    """A flag that the engine does not know or cannot do; the message is for a person."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the engine with llama-server's flags until SIGTERM or SIGINT, which end it at once.

    Args:
        argv: The flags, without a program's name; default: the process's own.

    Returns:
        The exit status when it never served: 0 after `--help` and the like, 1 with the reason on
        stderr for a flag or a model that cannot be used. Once it serves it does not return: the
        process exits with 0 on a signal, or by the signal itself while the model still loads.
    """
    try:
        words = parse(sys.argv[1:] if argv is None else argv)
        for flag, _ in words:
            if flag.target in _PROGRAM:
                sys.stdout.write(f"{_PROGRAM[flag.target]()}\n")
                return 0
        if not any(
            flag.target in ("model.path", "model.url", "model.hf_repo") for flag, _ in words
        ):
            raise FlagError("error: no model: give one with -m FILE or -hf USER/MODEL[:QUANT]")
        import xllamacpp

        params = build_params(xllamacpp, words)
    except FlagError as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(f"error: the embedded engine needs xllamacpp: {error}")
    return _serve(xllamacpp, params)


def parse(argv: Sequence[str]) -> list[tuple[Flag, str]]:
    """Return the flags of `argv` in their order, each with its value ("" when it takes none).

    Raises:
        FlagError: An unknown flag, or one without its value, in llama-server's words.
    """
    flags = by_name()
    found: list[tuple[Flag, str]] = []
    words = iter(argv)
    for word in words:
        # llama-server takes --like_this too
        flag = flags.get(word.replace("_", "-") if word.startswith("--") else word)
        if flag is None:
            raise FlagError(f"error: invalid argument: {word}")
        value = next(words, None) if flag.takes_value else ""
        if value is None:
            raise FlagError(f"error: expected value for argument: {word}")
        found.append((flag, value))
    return found


# --- flags to CommonParams -----------------------------------------------------------------


def build_params(xllamacpp: Any, words: Sequence[tuple[Flag, str]]) -> Any:
    """Return a `CommonParams` of the module `xllamacpp` with llama-server's defaults and `words`.

    Raises:
        FlagError: A value cannot be read, or this xllamacpp has no such setting.
    """
    params = xllamacpp.CommonParams()
    params.n_parallel = -1  # llama-server's own default: 4 slots that share one KV cache
    params.port = 8080
    for flag, value in words:
        _apply(xllamacpp, params, flag, value)
    if not params.model.path:
        # xllamacpp insists on a path; llama.cpp replaces it with that of the downloaded file
        params.model.path = params.model.hf_repo or params.model.url
    return params


def _apply(xllamacpp: Any, params: Any, flag: Flag, value: str) -> None:
    name = flag.names[-1]
    try:
        _set(xllamacpp, params, flag, value)
    except AttributeError as error:
        raise FlagError(f"error: {name} is not supported by this xllamacpp: {error}") from error
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise FlagError(f'error while handling argument "{name}": {value!r}: {error}') from error


def _set(xllamacpp: Any, params: Any, flag: Flag, value: str) -> None:
    if flag.kind in (Kind.ACTION, Kind.CALL):
        _ACTIONS[flag.target](xllamacpp, params, value)
        return
    *parents, name = flag.target.split(".")
    owner = params
    for parent in parents:
        owner = getattr(owner, parent)
    current = getattr(owner, name)
    setattr(owner, name, _read(xllamacpp, flag, value, current))
    if flag.sampling:
        bit = getattr(xllamacpp.common_params_sampling_config, flag.sampling)
        params.sampling.user_sampling_config |= bit.value


def _read(xllamacpp: Any, flag: Flag, value: str, current: Any) -> Any:
    """Return `value` as what `flag` sets; `current` tells a list from a set."""
    if flag.kind is Kind.INT:
        return int(flag.choices.get(value, value))
    if flag.kind is Kind.FLOAT:
        return float(value)
    if flag.kind is Kind.FILE:
        return Path(value).read_text(encoding="utf-8")
    if flag.kind is Kind.LIST:
        return type(current)(word for word in value.split(",") if word)
    if flag.kind in (Kind.CHOICE, Kind.CONST):
        if value not in flag.choices:
            raise ValueError(f"must be one of {', '.join(flag.choices)}")
        return _constant(xllamacpp, flag.choices[value])
    if flag.kind is Kind.TEXT:
        return value
    return flag.kind is Kind.TRUE


def _constant(xllamacpp: Any, text: str) -> Any:
    """Return what a table's `text` stands for: `enum.MEMBER`, True, False or a number."""
    enum, dot, member = text.partition(".")
    if dot:
        return getattr(getattr(xllamacpp, enum), member)
    return text == "True" if text in ("True", "False") else int(text)


def _lora(xllamacpp: Any, params: Any, value: str) -> None:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in value.split(",")]


def _lora_scaled(xllamacpp: Any, params: Any, value: str) -> None:
    pairs = [item.rpartition(":") for item in value.split(",")]
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, float(scale)) for path, _, scale in pairs
    ]


def _padded(numbers: Sequence[float], current: Sequence[Any]) -> list[Any]:
    if len(numbers) > len(current):
        raise ValueError(f"at most {len(current)} devices")
    return [*numbers, *([type(current[0])(0)] * (len(current) - len(numbers)))]


def _tensor_split(_: Any, params: Any, value: str) -> None:
    shares = [float(word) for word in value.replace("/", ",").split(",")]
    params.tensor_split = _padded(shares, params.tensor_split)


def _fit_target(_: Any, params: Any, value: str) -> None:
    sizes = [int(word) * 2**20 for word in value.split(",")]
    count = len(params.fit_params_target)
    params.fit_params_target = (
        sizes * count if len(sizes) == 1 else _padded(sizes, params.fit_params_target)
    )


def _override_tensor(_: Any, params: Any, value: str) -> None:
    before = params.tensor_buft_overrides
    params.tensor_buft_overrides = f"{before},{value}" if before else value


def _cpu_moe(xllamacpp: Any, params: Any, _: str) -> None:
    _override_tensor(xllamacpp, params, f"{_EXPERTS}=CPU")


def _n_cpu_moe(xllamacpp: Any, params: Any, value: str) -> None:
    for layer in range(int(value)):
        _override_tensor(xllamacpp, params, rf"blk\.{layer}{_EXPERTS}=CPU")


def _rope_scale(_: Any, params: Any, value: str) -> None:
    if float(value) <= 0:
        raise ValueError("must be above 0")
    params.rope_freq_scale = 1.0 / float(value)


def _spec_type(xllamacpp: Any, params: Any, value: str) -> None:
    types = {
        member.name.removeprefix(_DRAFT_TYPE).lower().replace("_", "-"): member
        for member in xllamacpp.common_speculative_type
    }
    unknown = [word for word in value.split(",") if word not in types]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    params.speculative.types = [types[word] for word in value.split(",")]


def _chat_template_kwargs(_: Any, params: Any, value: str) -> None:
    values = json.loads(value)
    if not isinstance(values, dict):
        raise TypeError("must be a JSON object")
    params.default_template_kwargs = {key: json.dumps(item) for key, item in values.items()}


def _timeout(_: Any, params: Any, value: str) -> None:
    params.timeout_read = params.timeout_write = int(value)


def _rerank(xllamacpp: Any, params: Any, _: str) -> None:
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


_ACTIONS: Mapping[str, Callable[[Any, Any, str], None]] = {
    "lora": _lora,
    "lora_scaled": _lora_scaled,
    "tensor_split": _tensor_split,
    "fit_target": _fit_target,
    "override_tensor": _override_tensor,
    "cpu_moe": _cpu_moe,
    "n_cpu_moe": _n_cpu_moe,
    "rope_scale": _rope_scale,
    "spec_type": _spec_type,
    "chat_template_kwargs": _chat_template_kwargs,
    "timeout": _timeout,
    "rerank": _rerank,
}


# --- running -------------------------------------------------------------------------------


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 1


def _serve(xllamacpp: Any, params: Any) -> int:
    # xllamacpp holds the interpreter's lock while a model loads, so that no handler of ours would
    # run for minutes: until then the kernel ends the process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, MemoryError) as error:
        # llama.cpp has logged why, but from a thread that the end of the process would cut short
        time.sleep(_LOG_GRACE_S)
        return _fail(f"exiting due to: {error}")
    return _run(server)


def _run(server: Any) -> NoReturn:
    """Wait for a signal, then exit with 0.

    `server` is only held: its destructor would wait for what still runs, and a stop is a stop.
    """
    # llama.cpp's threads may be the ones to get the signal; only the wakeup descriptor then rouses
    # this thread
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.read(awake, 1)
    os._exit(0)


def _help() -> str:
    lines = ["The embedded engine: llama.cpp's HTTP server with these of llama-server's flags."]
    for title, flags in GROUPS.items():
        lines += ["", f"----- {title} -----", ""]
        for flag in flags:
            value = "|".join(flag.choices) if flag.kind is Kind.CHOICE else flag.kind.value
            head = ", ".join(flag.names) + (f" {value}" if flag.takes_value else "")
            lines += [head, f"        {flag.about}"]
    return "\n".join(lines)


def _devices() -> str:
    """Return the devices that layers can go to, in llama-server's form."""
    import xllamacpp

    lines = ["Available devices:"]
    for device in xllamacpp.get_device_info():
        if device["type"].name.endswith("GPU"):
            free, total = (device[key] // 2**20 for key in ("memory_free", "memory_total"))
            lines.append(f"  {device['name']}: {device['description']} ({total} MiB, {free} free)")
    return "\n".join([*lines, *(["  (none)"] if len(lines) == 1 else [])])


def version() -> str:
    """Return what `--version` says, without loading the engine."""
    try:
        return f"xllamacpp {metadata.version('xllamacpp')}"
    except metadata.PackageNotFoundError:
        return "xllamacpp (not installed)"


_PROGRAM: Mapping[str, Callable[[], str]] = {
    "print_help": _help,
    "print_version": lambda: f"version: {version()}",
    "print_devices": _devices,
}


if __name__ == "__main__":
    sys.exit(main())
