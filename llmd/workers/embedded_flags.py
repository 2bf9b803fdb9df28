"""llama-server's flags as the embedded engine takes them: one table, flag -> `CommonParams`.

Data only, and no import of `xllamacpp`, so that whoever asks what the embedded engine understands
pays nothing for it. `embedded.py` parses with this table and applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Kind(Enum):
    """How a flag's value is read and what becomes of it; the value is what `--help` shows.

    `LIST` is split at commas, `FILE` is text read from a file, `CHOICE` is one of `Flag.choices`,
    `ACTION` is a function of `embedded.py`. The last four take no value: `TRUE`, `FALSE`,
    `CONST` (the only one of `Flag.choices`) and `CALL` (a function of `embedded.py`).
    """

    INT = "N"
    FLOAT = "X"
    TEXT = "TEXT"
    FILE = "FILE"
    LIST = "A,B"
    CHOICE = "WORD"
    ACTION = "VALUE"
    TRUE = "true"
    FALSE = "false"
    CONST = "const"
    CALL = "call"


_BARE = frozenset({Kind.TRUE, Kind.FALSE, Kind.CONST, Kind.CALL})
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        names: Its spellings.
        kind: How its value is read.
        target: Dotted attribute of `CommonParams`; for an `ACTION` or a `CALL`, a function.
        about: One line for `--help`.
        choices: The words that are allowed, each with a number, `True`, `False` or an enum member
            of xllamacpp as `enum.MEMBER`. An `INT` takes these words besides numbers.
        sampling: The `common_params_sampling_config` bit by which llama.cpp knows that the user
            chose this, so that it goes before what the model file recommends; "" = none.
    """

    names: tuple[str, ...]
    kind: Kind
    target: str
    about: str
    choices: Mapping[str, str]
    sampling: str

    @property
    def takes_value(self) -> bool:
        """Whether the word after it belongs to it."""
        return self.kind not in _BARE


def _flag(
    names: str,
    kind: Kind,
    target: str,
    about: str,
    choices: Mapping[str, str] = _NONE,
    *,
    sampling: str = "",
) -> Flag:
    return Flag(tuple(names.split()), kind, target, about, choices, sampling)


def _int(names: str, target: str, about: str, *, sampling: str = "") -> Flag:
    return _flag(names, Kind.INT, target, about, sampling=sampling)


def _float(names: str, target: str, about: str, *, sampling: str = "") -> Flag:
    return _flag(names, Kind.FLOAT, target, about, sampling=sampling)


def _text(names: str, target: str, about: str) -> Flag:
    return _flag(names, Kind.TEXT, target, about)


def _switch(on: str, off: str, target: str, about: str, *, inverted: bool = False) -> list[Flag]:
    """Return the flags that switch a setting on and off; `inverted` ones are named by their no."""
    kinds = (Kind.FALSE, Kind.TRUE) if inverted else (Kind.TRUE, Kind.FALSE)
    return [
        _flag(on, kinds[0], target, about),
        _flag(off, kinds[1], target, "the opposite of the flag above"),
    ]


def _members(enum: str, prefix: str, words: str) -> Mapping[str, str]:
    """Return each word with the member of `enum` that is spelled like it behind `prefix`."""
    return {
        word: f"{enum}.{prefix}{word.upper().replace('-', '_').replace('+', '_')}"
        for word in words.split()
    }


_CACHE_TYPES = _members("ggml_type", "GGML_TYPE_", "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1")
_FLASH = "llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_"
_LOAD = "llama_load_mode.LLAMA_LOAD_MODE_"
_LAYERS = {"auto": "-1", "all": "-1"}
_ON_OFF = {"on": "True", "off": "False"}

_PROGRAM = (
    _flag("-h --help --usage", Kind.CALL, "print_help", "print the flags and exit"),
    _flag("--version", Kind.CALL, "print_version", "print the version and exit"),
    _flag("--list-devices", Kind.CALL, "print_devices", "print the devices and exit"),
)

_MODEL = (
    _text("-m --model", "model.path", "the GGUF file"),
    _text("-mu --model-url", "model.url", "where it is downloaded from"),
    _text("-hf -hfr --hf-repo", "model.hf_repo", "Hugging Face repository, USER/MODEL[:QUANT]"),
    _text("-hff --hf-file", "model.hf_file", "the file in that repository"),
    _text("-hft --hf-token", "hf_token", "access token (default: the environment's HF_TOKEN)"),
    _flag("--offline", Kind.TRUE, "offline", "use what was downloaded before, and no network"),
    _flag("-a --alias", Kind.LIST, "model_alias", "the model's name in answers"),
    _flag("--tags", Kind.LIST, "model_tags", "words about the model"),
    _text("-mm --mmproj", "mmproj.path", "the projector of a multimodal model"),
    _text("-mmu --mmproj-url", "mmproj.url", "where it is downloaded from"),
    *_switch(
        "--mmproj-auto",
        "--no-mmproj --no-mmproj-auto",
        "no_mmproj",
        "use the projector that comes with a repository",
        inverted=True,
    ),
    *_switch("--mmproj-offload", "--no-mmproj-offload", "mmproj_use_gpu", "projector on the GPU"),
    _text("-mmdev --mmproj-device", "mmproj_device", "the projector's device"),
    _int("--image-min-tokens", "image_min_tokens", "least tokens of one image"),
    _int("--image-max-tokens", "image_max_tokens", "most tokens of one image"),
    _int("--mtmd-batch-max-tokens", "mtmd_batch_max_tokens", "most image tokens of one batch"),
    _text("--media-path", "media_path", "directory of files that requests may name"),
    _flag("--lora", Kind.ACTION, "lora", "LoRA adapters, comma-separated"),
    _flag("--lora-scaled", Kind.ACTION, "lora_scaled", "LoRA adapters as FILE:SCALE,..."),
    _flag("--lora-init-without-apply", Kind.TRUE, "lora_init_without_apply", "apply them later"),
    _flag(
        "-lm --load-mode",
        Kind.CHOICE,
        "load_mode",
        "how the file is read",
        {
            **_members("llama_load_mode", "LLAMA_LOAD_MODE_", "auto none mmap mlock mmap+mlock"),
            "dio": f"{_LOAD}DIRECT_IO",
        },
    ),
    _flag("--mlock", Kind.CONST, "load_mode", "keep it in memory", {"": f"{_LOAD}MLOCK"}),
    _flag("--mmap", Kind.CONST, "load_mode", "map it into memory", {"": f"{_LOAD}MMAP"}),
    _flag("--no-mmap", Kind.CONST, "load_mode", "read it, do not map it", {"": f"{_LOAD}NONE"}),
    _flag(
        "-lzm --lazy-mode",
        Kind.CHOICE,
        "lazy_mode",
        "leave certain tensors on disk until they are needed",
        _members("llama_lazy_mode", "LLAMA_LAZY_MODE_", "on off auto"),
    ),
    _flag("--check-tensors", Kind.TRUE, "check_tensors", "look for invalid values"),
)

_CONTEXT = (
    _int("-c --ctx-size", "n_ctx", "tokens of context, all slots together (0: the model's)"),
    _int("--kv-unified-per-slot", "kv_unified_per_slot", "tokens of context of each slot"),
    _int("-np --parallel", "n_parallel", "slots (-1: 4 that share one KV cache)"),
    _int("-b --batch-size", "n_batch", "most tokens of one logical batch"),
    _int("-ub --ubatch-size", "n_ubatch", "most tokens of one physical batch"),
    _int("--keep", "n_keep", "tokens of the prompt that a context shift keeps"),
    _int("-n --predict --n-predict", "n_predict", "tokens to generate (-1: no limit)"),
    _flag("-ctk --cache-type-k", Kind.CHOICE, "cache_type_k", "keys' type", _CACHE_TYPES),
    _flag("-ctv --cache-type-v", Kind.CHOICE, "cache_type_v", "values' type", _CACHE_TYPES),
    *_switch(
        "-kvu --kv-unified", "-no-kvu --no-kv-unified", "kv_unified", "slots share one KV cache"
    ),
    *_switch(
        "-kvo --kv-offload",
        "-nkvo --no-kv-offload",
        "no_kv_offload",
        "KV cache on the GPU",
        inverted=True,
    ),
    _flag("--swa-full", Kind.TRUE, "swa_full", "a full-size cache for sliding windows"),
    _flag(
        "-fa --flash-attn",
        Kind.CHOICE,
        "flash_attn_type",
        "flash attention",
        {"on": f"{_FLASH}ENABLED", "off": f"{_FLASH}DISABLED", "auto": f"{_FLASH}AUTO"},
    ),
    *_switch("--context-shift", "--no-context-shift", "ctx_shift", "drop the oldest tokens"),
    _int("-cram --cache-ram", "cache_ram_mib", "MiB of finished prompts to keep (-1: no limit)"),
    *_switch("--cache-prompt", "--no-cache-prompt", "cache_prompt", "reuse a slot's last prompt"),
    _int("--cache-reuse", "n_cache_reuse", "least tokens to reuse by shifting"),
    *_switch(
        "--cache-idle-slots", "--no-cache-idle-slots", "cache_idle_slots", "keep idle prompts"
    ),
    _int("-ctxcp --ctx-checkpoints", "n_ctx_checkpoints", "most checkpoints of one slot"),
    _int("-cms --checkpoint-min-step", "checkpoint_min_step", "least tokens between two"),
    _float("-sps --slot-prompt-similarity", "slot_prompt_similarity", "prompt to slot match"),
    _text("--slot-save-path", "slot_save_path", "directory of saved slots"),
    _flag(
        "--rope-scaling",
        Kind.CHOICE,
        "rope_scaling_type",
        "RoPE scaling",
        _members("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_", "none linear yarn"),
    ),
    _flag("--rope-scale", Kind.ACTION, "rope_scale", "RoPE context scaling factor"),
    _float("--rope-freq-base", "rope_freq_base", "RoPE base frequency"),
    _float("--rope-freq-scale", "rope_freq_scale", "RoPE frequency scaling factor"),
    _int("--yarn-orig-ctx", "yarn_orig_ctx", "YaRN: context the model was trained for"),
    _float("--yarn-ext-factor", "yarn_ext_factor", "YaRN: extrapolation mix"),
    _float("--yarn-attn-factor", "yarn_attn_factor", "YaRN: attention magnitude"),
    _float("--yarn-beta-slow", "yarn_beta_slow", "YaRN: high correction dimension"),
    _float("--yarn-beta-fast", "yarn_beta_fast", "YaRN: low correction dimension"),
)

_PLACEMENT = (
    _int("-t --threads", "cpuparams.n_threads", "threads of decoding"),
    _int("-tb --threads-batch", "cpuparams_batch.n_threads", "threads of prefill"),
    _int("--poll", "cpuparams.poll", "0 to 100: how eagerly threads wait for work"),
    _flag(
        "--prio",
        Kind.CHOICE,
        "cpuparams.priority",
        "priority of the threads",
        {
            str(number): f"ggml_sched_priority.GGML_SCHED_PRIO_{name}"
            for number, name in enumerate(("LOW", "NORMAL", "MEDIUM", "HIGH", "REALTIME"), -1)
        },
    ),
    _flag(
        "--numa",
        Kind.CHOICE,
        "numa",
        "placement on NUMA nodes",
        _members("ggml_numa_strategy", "GGML_NUMA_STRATEGY_", "distribute isolate numactl"),
    ),
    _flag("-ngl --gpu-layers --n-gpu-layers", Kind.INT, "n_gpu_layers", "on the GPU", _LAYERS),
    _flag(
        "-sm --split-mode",
        Kind.CHOICE,
        "split_mode",
        "how several GPUs share a model",
        _members("llama_split_mode", "LLAMA_SPLIT_MODE_", "none layer row tensor"),
    ),
    _flag("-ts --tensor-split", Kind.ACTION, "tensor_split", "each GPU's share, such as 3,1"),
    _int("-mg --main-gpu", "main_gpu", "the GPU that holds what is not split"),
    _flag("-ot --override-tensor", Kind.ACTION, "override_tensor", "PATTERN=BUFFER,..."),
    _flag("-cmoe --cpu-moe", Kind.CALL, "cpu_moe", "all experts in main memory"),
    _flag("-ncmoe --n-cpu-moe", Kind.ACTION, "n_cpu_moe", "the first N layers' experts there"),
    _flag("-fit --fit", Kind.CHOICE, "fit_params", "fit what is unset into memory", _ON_OFF),
    _flag("-fitt --fit-target", Kind.ACTION, "fit_target", "MiB to leave free on each device"),
    _int("-fitc --fit-ctx", "fit_params_min_ctx", "least context that fitting may choose"),
    *_switch(
        "--repack", "-nr --no-repack", "no_extra_bufts", "repack weights for the CPU", inverted=True
    ),
    *_switch(
        "--op-offload",
        "--no-op-offload",
        "no_op_offload",
        "the GPU works on weights in main memory",
        inverted=True,
    ),
    _flag("--no-host", Kind.TRUE, "no_host", "no host buffers"),
    *_switch("--warmup", "--no-warmup", "warmup", "one empty run before the first request"),
    *_switch("--perf", "--no-perf", "no_perf", "llama.cpp's own timings", inverted=True),
    _int("--sleep-idle-seconds", "sleep_idle_seconds", "free the memory when idle (-1: never)"),
)

_CONFIG = "COMMON_PARAMS_SAMPLING_CONFIG_"
_SAMPLING = (
    _flag(
        "--samplers",
        Kind.TEXT,
        "sampling.samplers",
        "samplers in their order, separated by ;",
        sampling=f"{_CONFIG}SAMPLERS",
    ),
    _flag(
        "-s --seed", Kind.INT, "sampling.seed", "seed (-1: a random one)", {"-1": str(2**32 - 1)}
    ),
    _flag("--ignore-eos", Kind.TRUE, "sampling.ignore_eos", "do not stop at the end token"),
    _float("--temp --temperature", "sampling.temp", "temperature", sampling=f"{_CONFIG}TEMP"),
    _int("--top-k", "sampling.top_k", "top-k (0: off)", sampling=f"{_CONFIG}TOP_K"),
    _float("--top-p", "sampling.top_p", "top-p (1: off)", sampling=f"{_CONFIG}TOP_P"),
    _float("--min-p", "sampling.min_p", "min-p (0: off)", sampling=f"{_CONFIG}MIN_P"),
    _float(
        "--xtc-probability",
        "sampling.xtc_probability",
        "XTC probability (0: off)",
        sampling=f"{_CONFIG}XTC_PROBABILITY",
    ),
    _float(
        "--xtc-threshold",
        "sampling.xtc_threshold",
        "XTC threshold",
        sampling=f"{_CONFIG}XTC_THRESHOLD",
    ),
    _float("--typical --typical-p", "sampling.typ_p", "locally typical sampling (1: off)"),
    _int(
        "--repeat-last-n",
        "sampling.penalty_last_n",
        "tokens that penalties look back",
        sampling=f"{_CONFIG}PENALTY_LAST_N",
    ),
    _float(
        "--repeat-penalty",
        "sampling.penalty_repeat",
        "penalty on repetition (1: off)",
        sampling=f"{_CONFIG}PENALTY_REPEAT",
    ),
    _float("--presence-penalty", "sampling.penalty_present", "presence penalty (0: off)"),
    _float("--frequency-penalty", "sampling.penalty_freq", "frequency penalty (0: off)"),
    _float("--dry-multiplier", "sampling.dry_multiplier", "DRY multiplier (0: off)"),
    _float("--dry-base", "sampling.dry_base", "DRY base"),
    _int("--dry-allowed-length", "sampling.dry_allowed_length", "DRY: length that is free"),
    _int("--dry-penalty-last-n", "sampling.dry_penalty_last_n", "DRY: tokens to look back"),
    _float("--dynatemp-range", "sampling.dynatemp_range", "dynamic temperature (0: off)"),
    _float("--dynatemp-exp", "sampling.dynatemp_exponent", "dynamic temperature's exponent"),
    _int("--mirostat", "sampling.mirostat", "0, 1 or 2", sampling=f"{_CONFIG}MIROSTAT"),
    _float("--mirostat-lr", "sampling.mirostat_eta", "eta", sampling=f"{_CONFIG}MIROSTAT_ETA"),
    _float("--mirostat-ent", "sampling.mirostat_tau", "tau", sampling=f"{_CONFIG}MIROSTAT_TAU"),
)

_DRAFT = "speculative.draft."
_SPECULATION = (
    _text("-md --model-draft --spec-draft-model", f"{_DRAFT}mparams.path", "the draft's GGUF file"),
    _text("-hfd -hfrd --hf-repo-draft", f"{_DRAFT}mparams.hf_repo", "the draft's repository"),
    _flag("--spec-type", Kind.ACTION, "spec_type", "draft-simple, ngram-mod, ...: how to draft"),
    _flag(
        "-ngld --gpu-layers-draft --n-gpu-layers-draft",
        Kind.INT,
        f"{_DRAFT}n_gpu_layers",
        "the draft's on the GPU",
        _LAYERS,
    ),
    _text("-devd --device-draft", f"{_DRAFT}devices", "the draft's devices"),
    _int("-td --threads-draft", f"{_DRAFT}cpuparams.n_threads", "the draft's for decoding"),
    _int("-tbd --threads-batch-draft", f"{_DRAFT}cpuparams_batch.n_threads", "for prefill"),
    _flag("-ctkd --cache-type-k-draft", Kind.CHOICE, f"{_DRAFT}cache_type_k", "", _CACHE_TYPES),
    _flag("-ctvd --cache-type-v-draft", Kind.CHOICE, f"{_DRAFT}cache_type_v", "", _CACHE_TYPES),
    _int("--spec-draft-n-max", f"{_DRAFT}n_max", "most tokens to draft"),
    _int("--spec-draft-n-min", f"{_DRAFT}n_min", "least tokens to draft"),
    _float("--spec-draft-p-min --draft-p-min", f"{_DRAFT}p_min", "least probability of one"),
    _float("--spec-draft-p-split --draft-p-split", f"{_DRAFT}p_split", "split probability"),
    _int("--spec-ngram-mod-n-min", "speculative.ngram_mod.n_min", "least n-gram tokens"),
    _int("--spec-ngram-mod-n-max", "speculative.ngram_mod.n_max", "most n-gram tokens"),
    _int("--spec-ngram-mod-n-match", "speculative.ngram_mod.n_match", "tokens that must match"),
)

_CHAT = (
    *_switch("--jinja", "--no-jinja", "use_jinja", "the full template engine"),
    _text("--chat-template", "chat_template", "a template, or the name of a built-in one"),
    _flag("--chat-template-file", Kind.FILE, "chat_template", "a file with a template"),
    _flag("--chat-template-kwargs", Kind.ACTION, "chat_template_kwargs", "a JSON object"),
    *_switch("--prefill-assistant", "--no-prefill-assistant", "prefill_assistant", "prefill"),
    *_switch(
        "--skip-chat-parsing", "--no-skip-chat-parsing", "force_pure_content_parser", "plain text"
    ),
    _flag(
        "--reasoning-format",
        Kind.CHOICE,
        "reasoning_format",
        "where thoughts go",
        _members(
            "common_reasoning_format",
            "COMMON_REASONING_FORMAT_",
            "none auto deepseek deepseek-legacy",
        ),
    ),
    _flag(
        "-rea --reasoning",
        Kind.CHOICE,
        "enable_reasoning",
        "thinking",
        {"on": "1", "off": "0", "auto": "-1"},
    ),
    _int("--reasoning-budget", "sampling.reasoning_budget_tokens", "tokens of it (-1: no limit)"),
    _text("--reasoning-budget-message", "sampling.reasoning_budget_message", "its last words"),
)

_SERVER = (
    _flag("--host", Kind.LIST, "hostnames", "addresses, or Unix sockets that end in .sock"),
    _int("--port", "port", "the port (0: a free one)"),
    _flag("--reuse-port", Kind.TRUE, "reuse_port", "others may listen there too"),
    _int("--threads-http", "n_threads_http", "threads that answer HTTP"),
    _flag("-to --timeout", Kind.ACTION, "timeout", "seconds to wait for a client"),
    _int("--sse-ping-interval", "sse_ping_interval", "seconds between pings (-1: none)"),
    _text("--api-prefix", "api_prefix", "what every path begins with"),
    _flag("--api-key", Kind.LIST, "api_keys", "keys that clients must show"),
    _text("--ssl-key-file", "ssl_file_key", "the TLS key"),
    _text("--ssl-cert-file", "ssl_file_cert", "the TLS certificate"),
    _text("--cors-origins", "cors_origins", "origins that browsers may come from"),
    _text("--path", "public_path", "directory of files to serve at /"),
    *_switch("--ui --webui", "--no-ui --no-webui", "ui", "the web UI at /"),
    _text("--ui-config --webui-config", "ui_config_json", "its settings as JSON"),
    _flag("--ui-config-file --webui-config-file", Kind.FILE, "ui_config_json", "as a file"),
    _flag("--metrics", Kind.TRUE, "endpoint_metrics", "GET /metrics"),
    _flag("--props", Kind.TRUE, "endpoint_props", "POST /props"),
    *_switch("--slots", "--no-slots", "endpoint_slots", "GET /slots"),
    *_switch("-cb --cont-batching", "-nocb --no-cont-batching", "cont_batching", "batching"),
    _flag("--embedding --embeddings", Kind.TRUE, "embedding", "embeddings, and nothing else"),
    _flag("--rerank --reranking", Kind.CALL, "rerank", "reranking, and nothing else"),
    _flag(
        "--pooling",
        Kind.CHOICE,
        "pooling_type",
        "how token vectors become one",
        _members("llama_pooling_type", "LLAMA_POOLING_TYPE_", "none mean cls last rank"),
    ),
    _int("--embd-normalize", "embd_normalize", "norm of embeddings (2: euclidean, -1: none)"),
    _flag("-sp --special", Kind.TRUE, "special", "special tokens in answers"),
    _int("-lv --verbosity --log-verbosity", "verbosity", "0 to 5: how much is logged"),
    _flag("-v --verbose --log-verbose", Kind.CONST, "verbosity", "log all", {"": str(2**31 - 1)}),
    _flag("--log-jsonl", Kind.TRUE, "log_json", "log as JSON lines"),
    _text("--log-prompts-dir", "path_prompts_log_dir", "directory to log prompts to"),
)

GROUPS: Mapping[str, tuple[Flag, ...]] = MappingProxyType(
    {
        "program": _PROGRAM,
        "model": _MODEL,
        "context": _CONTEXT,
        "placement": _PLACEMENT,
        "sampling": _SAMPLING,
        "speculation": _SPECULATION,
        "chat": _CHAT,
        "server": _SERVER,
    }
)
"""Every flag, in the order of `--help`."""


def by_name() -> dict[str, Flag]:
    """Return every spelling with its flag."""
    return {name: flag for group in GROUPS.values() for flag in group for name in flag.names}
