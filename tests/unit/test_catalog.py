"""Names, shards, projectors, links: which file is which model, and what a bad one costs."""

from __future__ import annotations

import os

import gguf_maker as make
import pytest
from gguf_maker import STR, U32, pair

from llmd.config.schema import ModelConfig
from llmd.models import drafts, find
from llmd.models.catalog import Capability, Catalog, hf_name
from llmd.models.find import find_gguf, parse_shard


@pytest.fixture
def tree(tmp_path):
    """A models directory; `put` writes files into it."""
    root = tmp_path / "models"
    root.mkdir()
    return Tree(root)


class Tree:
    def __init__(self, root):
        self.root = root

    def put(self, *names, data=None):
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make.model() if data is None else data)
        return self.root / names[0]

    def put_shards(self, base, count, missing=()):
        for number, data in enumerate(make.shards(count), 1):
            if number not in missing:
                self.put(f"{base}-{number:05}-of-{count:05}.gguf", data=data)

    def load(self, *entries):
        return Catalog.load(entries, self.root)


def names(catalog):
    return [model.name for model in catalog.models]


def entry(path, **more):
    return ModelConfig(path=str(path), **more)


# --- names ---------------------------------------------------------------------------------


def test_files_are_named_by_their_stem_and_found_by_their_file_name(tree):
    path = tree.put("qwen3-32b-q4_k_m.gguf")
    tree.put("sub/Gemma 3.GGUF")
    catalog = tree.load()
    assert names(catalog) == ["Gemma 3", "qwen3-32b-q4_k_m"]
    assert (catalog.faults, catalog.warnings) == ((), ())
    model = catalog.resolve("qwen3-32b-q4_k_m")
    assert model is catalog.resolve("qwen3-32b-q4_k_m.gguf")
    assert (model.path, model.shards, model.hf) == (path, (path,), None)
    assert model.size_bytes == path.stat().st_size
    assert model.config == ModelConfig(name="qwen3-32b-q4_k_m", path=str(path))
    assert model.header.architecture == "llama"
    assert catalog.resolve("Gemma 3.GGUF").name == "Gemma 3"


def test_names_are_looked_up_and_nothing_else(tree):
    path = tree.put("a/m.gguf")
    catalog = tree.load()
    for name in (str(path), "a/m", "../models/a/m.gguf", "./m.gguf", "M", "m.GGUF", "", "m/"):
        assert catalog.resolve(name) is None


def test_duplicates_get_their_relative_path(tree):
    tree.put("m.gguf", "a/m.gguf", "a/b/m.gguf", "a/other.gguf")
    catalog = tree.load()
    assert names(catalog) == ["a/b/m", "a/m", "m", "other"]
    assert catalog.resolve("a/m").path == tree.root / "a/m.gguf"
    assert catalog.resolve("a/b/m.gguf").name == "a/b/m"
    # the file name of all three means the one whose relative path it is
    assert catalog.resolve("m.gguf").name == "m"


def test_a_file_name_that_two_have_is_nobodys(tree):
    tree.put("a/m.gguf", "b/m.gguf")
    catalog = tree.load()
    assert names(catalog) == ["a/m", "b/m"]
    assert catalog.resolve("m.gguf") is None
    assert catalog.resolve("m") is None


def test_suffixes_that_differ_in_case_only(tree):
    tree.put("m.gguf", "m.GGUF")
    catalog = tree.load()
    assert names(catalog) == ["m", "m.gguf"]
    assert catalog.resolve("m").path.name == "m.GGUF"


def test_what_is_not_looked_at(tree):
    tree.put(".hidden.gguf", ".git/m.gguf", "m.bin", "m.gguf.part", "._m.gguf", ".gguf")
    catalog = tree.load()
    assert catalog.models == ()
    assert catalog.warnings == ()


# --- shards --------------------------------------------------------------------------------


def test_shards_are_one_model(tree):
    tree.put_shards("big/model-q8", 3)
    (model,) = tree.load().models
    assert model.name == "model-q8"
    assert model.path == tree.root / "big/model-q8-00001-of-00003.gguf"
    assert [path.name for path in model.shards] == [
        f"model-q8-0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert model.aliases == ("model-q8-00001-of-00003.gguf",)
    assert model.size_bytes == sum(path.stat().st_size for path in model.shards)
    assert model.header.tensor_count == 3
    assert model.fault == ""


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_shard_is_named(tree, missing):
    tree.put_shards("m", 3, missing=[missing])
    catalog = tree.load()
    (model,) = catalog.models
    assert model.fault == f"shards are missing: m-0000{missing}-of-00003.gguf"
    assert model.path == tree.root / "m-00001-of-00003.gguf"
    assert model.header is None
    assert list(map(str, catalog.faults)) == [f"llama.models_dir: {model.path}: {model.fault}"]
    assert catalog.warnings == ()


def test_not_all_of_very_many_missing_shards_are_named(tree):
    tree.put("m-00001-of-00999.gguf")
    (model,) = tree.load().models
    assert model.fault.endswith("m-00009-of-00999.gguf and 990 more")


def test_a_bad_shard_is_named(tree):
    tree.put_shards("m", 2)
    tree.put("m-00002-of-00002.gguf", data=b"x" * 99)
    (model,) = tree.load().models
    assert model.fault.startswith("m-00002-of-00002.gguf: not a GGUF file")


def test_shards_under_a_wrong_name_are_found_out(tree):
    parts = make.shards(2)
    tree.put("whole.gguf", data=parts[0])
    tree.put("later.gguf", data=parts[1])
    catalog = tree.load()
    assert names(catalog) == ["whole"]
    assert "says inside that it is 1 of 2" in catalog.models[0].fault
    assert any("later.gguf: a later shard of a model; ignored" in w for w in catalog.warnings)


@pytest.mark.parametrize(
    "stem", ["m-00000-of-00002", "m-00003-of-00002", "m-1-of-2", "-00001-of-00002", "m"]
)
def test_names_that_are_no_shards(stem):
    assert parse_shard(stem) is None


# --- [[models]] ----------------------------------------------------------------------------


def test_an_entry_wins_over_the_same_file(tree):
    path = tree.put("sub/qwen.gguf")
    mine = entry(path, name="mine", aliases=("chat", "best"), threads=3)
    catalog = tree.load(mine)
    (model,) = catalog.models
    assert (model.name, model.entry, model.config) == ("mine", 0, mine)
    assert model.aliases == ("chat", "best", "qwen.gguf")
    for alias in model.aliases:
        assert catalog.resolve(alias) is model
    assert catalog.resolve("qwen") is None


def test_an_entry_wins_over_the_same_name(tree, tmp_path):
    tree.put("qwen.gguf", "sub/gemma.gguf")
    other = tmp_path / "elsewhere.gguf"
    other.write_bytes(make.model())
    catalog = tree.load(entry(other, name="qwen", aliases=("gemma",)))
    assert catalog.resolve("qwen").path == other
    assert catalog.resolve("gemma").path == other
    assert catalog.resolve("qwen.gguf").path == tree.root / "qwen.gguf"
    assert catalog.resolve("sub/gemma").path == tree.root / "sub/gemma.gguf"


def test_an_entry_without_a_name_is_named_by_its_file(tree):
    tree.put_shards("m", 2)
    catalog = tree.load(entry(tree.root / "m-00002-of-00002.gguf"))
    (model,) = catalog.models
    assert (model.name, model.config.name) == ("m", "m")
    assert model.path.name == "m-00001-of-00002.gguf"
    assert model.fault == ""


def test_bad_entries_are_faults_and_keep_their_place(tree):
    bad = tree.put("bad.gguf", data=b"x" * 99)
    tree.put("eyes.gguf", data=make.projector())
    tree.put("half-00001-of-00002.gguf", data=make.shards(2)[0])
    catalog = tree.load(
        entry(bad, name="bad"),
        entry(tree.root / "absent.gguf", name="absent"),
        entry(tree.root, name="folder"),
        entry(tree.root / "eyes.gguf", name="eyes"),
        entry(tree.root / "half-00001-of-00002.gguf", name="half"),
    )
    faults = {model.name: model.fault for model in catalog.models}
    assert faults["bad"].startswith("not a GGUF file")
    assert faults["absent"] == "No such file or directory"
    assert faults["folder"] == "not a regular file"
    assert faults["eyes"] == "is a projector (mmproj) and no model"
    assert faults["half"] == "shards are missing: half-00002-of-00002.gguf"
    assert len(catalog.faults) == 5
    assert [fault.path for fault in catalog.faults] == [
        ("models", number, "path") for number in range(5)
    ]
    assert str(catalog.faults[0]).startswith(f"models.bad.path: {bad}: not a GGUF file")


def test_names_that_clash_between_entries_are_faults(tree):
    a, b = tree.put("a.gguf"), tree.put("b.gguf")
    catalog = tree.load(entry(a, name="x", aliases=("y",)), entry(b, name="y"), entry(b, name="x"))
    assert [(fault.path, str(fault)) for fault in catalog.faults] == [
        (("models", 2, "name"), "models.x.name: two entries have this name"),
        (("models", 0, "aliases", 0), "models.x.aliases[0]: y is another model's name"),
    ]
    assert catalog.resolve("y").path == b


def test_the_other_files_of_an_entry_must_exist(tree):
    path = tree.put("m.gguf")
    (model,) = tree.load(entry(path, draft="/no/draft.gguf")).models
    assert model.fault == "draft: /no/draft.gguf: no such file"
    (model,) = tree.load(entry(path, lora=("/no/lora.gguf",))).models
    assert model.fault == "lora: /no/lora.gguf: no such file"
    (model,) = tree.load(entry(path, mmproj="/no/eyes.gguf")).models
    assert model.fault == "mmproj: /no/eyes.gguf: No such file or directory"
    (model,) = tree.load(entry(path, mmproj=str(path))).models
    assert model.fault.endswith("is no projector")


@pytest.mark.parametrize("source", ["path", "hf"])
def test_every_missing_file_of_an_entry_is_told(tree, source):
    own = {"path": str(tree.root / "absent.gguf")} if source == "path" else {"hf": "o/m:Q8_0"}
    other = {"lora": ("/no/a.gguf", str(tree.put("b.gguf")), "/no/c.gguf")}
    asked = ModelConfig(name="m", draft="/no/draft.gguf", mmproj="/no/eyes.gguf", **own, **other)
    catalog = tree.load(asked)
    keys = [fault.path[2:] for fault in catalog.faults]
    expected = [("draft",), ("lora", 0), ("lora", 2), ("mmproj",)]
    assert keys == ([("path",), *expected] if source == "path" else expected)
    fault = catalog.resolve("m").fault
    for file in ("/no/draft.gguf", "/no/a.gguf", "/no/c.gguf", "/no/eyes.gguf"):
        assert file in fault


def test_sizes_of_the_other_files_are_summed(tree):
    path = tree.put("m.gguf")
    eyes = tree.put("mmproj.gguf", data=make.projector())
    lora = tree.put("lora.bin", data=bytes(1000))
    model = tree.load(entry(path, lora=(str(lora),), draft=str(path))).resolve("m")
    assert model.extra_bytes == 1000 + path.stat().st_size + eyes.stat().st_size


# --- repositories --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("ggml-org/Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-Q8_0"),
        ("ggml-org/Qwen3-0.6B-GGUF", "Qwen3-0.6B"),
        ("x/model.gguf:F16", "model-F16"),
        ("x/GGUF", "GGUF"),
        ("odd", "odd"),
    ],
)
def test_names_of_repositories(reference, name):
    assert hf_name(reference) == name


def test_a_repository_is_found_by_all_its_names():
    reference = "ggml-org/Qwen3-0.6B-GGUF:Q8_0"
    catalog = Catalog.load([ModelConfig(hf=reference)])
    (model,) = catalog.models
    assert (model.name, model.hf, model.path) == ("Qwen3-0.6B-Q8_0", reference, None)
    assert (model.header, model.size_bytes, model.shards) == (None, 0, ())
    assert catalog.resolve(reference) is model
    assert catalog.resolve("Qwen3-0.6B-GGUF:Q8_0") is model
    assert model.capabilities == {Capability.COMPLETION, Capability.CHAT}
    (named,) = Catalog.load([ModelConfig(hf=reference, name="q")]).models
    assert named.name == "q"
    assert "Qwen3-0.6B-Q8_0" in named.aliases


# --- projectors ----------------------------------------------------------------------------


def test_a_projector_belongs_to_the_model_beside_it(tree):
    tree.put("vl/model-Q4_K_M.gguf", "vl/model-Q8_0.gguf", "text/other.gguf")
    eyes = tree.put("vl/mmproj-F16.gguf", data=make.projector())
    catalog = tree.load()
    assert names(catalog) == ["model-Q4_K_M", "model-Q8_0", "other"]
    assert catalog.resolve("model-Q4_K_M").mmproj == eyes
    assert catalog.resolve("model-Q8_0").mmproj == eyes
    assert catalog.resolve("other").mmproj is None
    assert Capability.VISION in catalog.resolve("model-Q8_0").capabilities
    assert Capability.VISION not in catalog.resolve("other").capabilities


def test_a_projector_that_names_a_model_belongs_to_it_alone(tree):
    tree.put("gemma-3-4b-it-q4_0.gguf", "gemma-3-27b-it-q4_0.gguf", "qwen.gguf")
    tree.put("mmproj-gemma-3-4b-it-f16.gguf", data=make.projector())
    catalog = tree.load()
    assert catalog.resolve("gemma-3-4b-it-q4_0").mmproj is not None
    assert catalog.resolve("gemma-3-27b-it-q4_0").mmproj is None
    assert catalog.resolve("qwen").mmproj is None


def test_a_projector_that_names_none_belongs_to_models_of_its_width(tree):
    tree.put("narrow.gguf", data=make.model(embedding_length=64))
    tree.put("wide.gguf", data=make.model(embedding_length=128))
    tree.put("mmproj-model-f16.gguf", data=make.projector(128))
    catalog = tree.load()
    assert catalog.resolve("narrow").mmproj is None
    assert catalog.resolve("wide").mmproj is not None


def test_of_several_formats_the_usual_one_is_taken(tree):
    for label, number in (("BF16", 32), ("F16", 1), ("F32", 0)):
        kind = pair("general.file_type", U32, number)
        tree.put(f"mmproj-{label}.gguf", data=make.projector(64, kind))
    tree.put("m.gguf")
    assert tree.load().resolve("m").mmproj.name == "mmproj-F16.gguf"


def test_an_entry_gets_the_projector_beside_it_or_the_one_it_names(tree):
    path = tree.put("m.gguf")
    beside = tree.put("mmproj-m.gguf", data=make.projector())
    other = tree.put("other/eyes.gguf", data=make.projector())
    tree.put("mmproj-bad.gguf", data=b"")
    assert tree.load(entry(path)).resolve("m").mmproj == beside
    assert tree.load(entry(path, mmproj=str(other))).resolve("m").mmproj == other


def test_what_is_no_model_is_passed_over_with_a_warning(tree):
    tree.put("mmproj-m.gguf")
    tree.put("mmproj-cut.gguf", data=make.projector()[:-9])
    lora = [pair("general.architecture", STR, "llama"), pair("general.type", STR, "adapter")]
    tree.put("lora.gguf", data=make.gguf(lora))
    tree.put("imatrix.gguf", data=make.gguf([pair("general.type", STR, "imatrix")]))
    catalog = tree.load()
    assert catalog.models == ()
    text = "\n".join(catalog.warnings)
    assert "mmproj-m.gguf: is no projector; ignored" in text
    assert "mmproj-cut.gguf: cut off" in text
    assert "lora.gguf: an adapter and no model; ignored" in text
    assert "imatrix.gguf: an importance matrix and no model; ignored" in text


# --- what models are for -------------------------------------------------------------------


def test_capabilities_come_from_the_file(tree):
    template = pair("tokenizer.chat_template", STR, "{{ tools }}")
    tree.put("chat.gguf", data=make.model(template))
    tree.put("base.gguf")
    tree.put("embed.gguf", data=make.model(arch="bert"))
    tree.put("rerank.gguf", data=make.model(pooling_type=4))
    catalog = tree.load()
    expected = {
        "chat": {Capability.COMPLETION, Capability.CHAT, Capability.TOOLS},
        "base": {Capability.COMPLETION},
        "embed": {Capability.EMBEDDING},
        "rerank": {Capability.RERANK},
    }
    assert {model.name: model.capabilities for model in catalog.models} == expected
    assert catalog.resolve("embed").config.embedding
    assert catalog.resolve("rerank").config.reranking
    assert not catalog.resolve("chat").config.embedding


def test_an_entry_says_what_a_model_is_for(tree):
    path = tree.put("m.gguf", data=make.model(pooling_type=4))
    (model,) = tree.load(entry(path, embedding=True)).models
    assert model.capabilities == {Capability.EMBEDDING}
    assert not model.config.reranking
    plain = tree.put("p.gguf")
    model = tree.load(entry(plain, chat_template="chatml")).resolve("p")
    assert Capability.CHAT in model.capabilities


# --- trees that are not nice ---------------------------------------------------------------


def test_a_name_with_a_comma_is_a_fault_that_says_what_to_do(tree):
    """llama-server reads its name as a list: answers would carry only what is before the comma."""
    tree.put("found,1.gguf")
    for folder in ("a,b", "c"):
        tree.put(f"{folder}/twin.gguf")
    named = tree.put("own,1.gguf")
    unnamed = tree.put("own,2.gguf")
    catalog = tree.load(entry(named, name="own"), entry(unnamed))
    faults = {model.name: model.fault for model in catalog.models}
    told = "llama-server cannot be told of a name with a comma"
    assert faults == {
        "a,b/twin": f"{told}; rename its folder",
        "c/twin": "",
        "found,1": f"{told}; rename the file",
        "own": "",
        "own,2": f"{told}; give its entry a name without one",
    }
    assert [fault.path for fault in catalog.faults] == [("models", 1, "path")]
    assert len(catalog.warnings) == 2


def test_bad_files_are_warnings_and_keep_their_place(tree):
    path = tree.put("bad.gguf", data=make.model()[:-9])
    tree.put("good.gguf")
    catalog = tree.load()
    assert names(catalog) == ["bad", "good"]
    bad = catalog.resolve("bad")
    assert "download that is not finished" in bad.fault
    assert (bad.header, bad.size_bytes) == (None, path.stat().st_size)
    assert catalog.faults == ()
    assert catalog.warnings == (f"{path}: {bad.fault}",)


def test_links_to_the_outside_are_not_followed(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.gguf").write_bytes(make.model())
    (tree.root / "link.gguf").symlink_to(outside / "secret.gguf")
    (tree.root / "folder").symlink_to(outside)
    (tree.root / "up").symlink_to("..")
    (tree.root / "root.gguf").symlink_to("/etc/passwd")
    catalog = tree.load()
    assert catalog.models == ()
    assert len(catalog.warnings) == 4
    assert all("leads outside of" in warning for warning in catalog.warnings)


def test_links_inside_are_further_names(tree):
    path = tree.put("real/m.gguf")
    (tree.root / "a.gguf").symlink_to("real/m.gguf")
    (tree.root / "linked").symlink_to("real")
    catalog = tree.load()
    (model,) = catalog.models
    assert (model.name, model.path) == ("m", path)
    assert catalog.resolve("a") is model
    assert catalog.resolve("a.gguf") is model


def test_links_to_files_without_suffix_are_models_by_their_own_name(tree):
    blob = tree.put("blobs/sha256-1234")
    snapshot = tree.root / "snapshots/main"
    snapshot.mkdir(parents=True)
    (snapshot / "m.gguf").symlink_to("../../blobs/sha256-1234")
    (model,) = tree.load().models
    assert (model.name, model.path) == ("m", snapshot / "m.gguf")
    assert model.size_bytes == blob.stat().st_size


def test_linked_hidden_folders_inside_are_read(tree):
    tree.put(".store/m.gguf")
    (tree.root / "shown").symlink_to(".store")
    assert names(tree.load()) == ["m"]


def test_loops_end(tree):
    tree.put("a/m.gguf")
    (tree.root / "a/loop").symlink_to("..")
    (tree.root / "self").symlink_to("self")
    (tree.root / "self.gguf").symlink_to("self.gguf")
    catalog = tree.load()
    assert names(catalog) == ["m"]


def test_the_directory_may_be_a_link_itself(tree, tmp_path):
    tree.put("m.gguf")
    (tmp_path / "link").symlink_to(tree.root)
    (model,) = Catalog.load((), tmp_path / "link").models
    assert model.path == tmp_path / "link/m.gguf"


def test_odd_entries_are_warnings(tree):
    os.mkfifo(tree.root / "fifo.gguf")
    (tree.root / "folder.gguf").mkdir()
    (tree.root / "broken.gguf").symlink_to("nowhere")
    tree.put("esc\x1b[2J.gguf")
    (tree.root / os.fsdecode(b"latin\xe9.gguf")).write_bytes(make.model())
    tree.put("good.gguf")
    catalog = tree.load()
    assert names(catalog) == ["good"]
    text = "\n".join(catalog.warnings)
    assert text.isprintable() or text.replace("\n", "").isprintable()
    for part in ("fifo.gguf: not a regular file", "broken.gguf: a link that leads nowhere"):
        assert part in text
    assert text.count("its name cannot be a model's") == 2


def test_unreadable_folders_are_warnings(tree, monkeypatch):
    tree.put("closed/m.gguf", "open/n.gguf")
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(find.os, "scandir", guarded)
    catalog = tree.load()
    assert names(catalog) == ["n"]
    assert catalog.warnings == (f"{tree.root}/closed: cannot be read: Permission denied",)


def test_endless_trees_are_left_early(tree, monkeypatch):
    tree.put("a/b/c/deep.gguf", "x.gguf", "y.gguf")
    monkeypatch.setattr(find, "MAX_DEPTH", 2)
    files, warnings = find_gguf(tree.root)
    assert [file.relative for file in files] == ["x.gguf", "y.gguf"]
    assert warnings == [f"{tree.root}/a/b/c: too deep; nothing below it is read"]
    monkeypatch.setattr(find, "MAX_ENTRIES", 2)
    _files, warnings = find_gguf(tree.root)
    assert warnings == [f"{tree.root}: more than 2 entries; the rest is not read"]


@pytest.mark.parametrize("make_it", [lambda path: None, lambda path: path.write_text("")])
def test_a_directory_that_is_none_is_a_fault(tmp_path, make_it):
    path = tmp_path / "models"
    make_it(path)
    catalog = Catalog.load((), path)
    assert catalog.models == ()
    assert len(catalog.faults) == 1
    assert str(catalog.faults[0]).startswith(f"llama.models_dir: {path}: ")


def test_no_models_at_all():
    catalog = Catalog.load()
    assert (catalog.models, catalog.faults, catalog.warnings) == ((), (), ())
    assert catalog.resolve("x") is None


# --- rescan --------------------------------------------------------------------------------


def test_a_rescan_reads_only_what_changed(tree, monkeypatch):
    tree.put("same.gguf", "gone.gguf")
    bad = tree.put("bad.gguf", data=b"")
    before = tree.load(ModelConfig(hf="a/b"))
    read = []
    monkeypatch.setattr(
        drafts, "read_header", lambda path: read.append(path.name) or before.models[-1].header
    )
    (tree.root / "gone.gguf").unlink()
    tree.put("new.gguf")
    bad.write_bytes(make.model())
    after = before.rescan()
    assert sorted(read) == ["bad.gguf", "new.gguf"]
    assert names(after) == ["b", "bad", "new", "same"]
    assert names(before) == ["b", "bad", "gone", "same"]
    assert before.resolve("bad").fault
    assert not after.resolve("bad").fault
    assert after.resolve("same") == before.resolve("same")
    read.clear()
    after.rescan()
    assert read == []


# --- models that come later ----------------------------------------------------------------


def test_a_repository_comes_to_the_catalog_without_a_look_at_the_disk(tree, monkeypatch):
    tree.put("a.gguf")
    before = tree.load(ModelConfig(hf="o/Other-GGUF:Q4_0", name="z"))
    monkeypatch.setattr(drafts, "read_header", None)
    after, added = before.with_repository("ggml-org/Qwen3-0.6B-GGUF:Q8_0")
    assert names(before) == ["a", "z"]
    assert names(after) == ["a", "Qwen3-0.6B-Q8_0", "z"]
    assert (added.hf, added.path, added.fault) == ("ggml-org/Qwen3-0.6B-GGUF:Q8_0", None, "")
    for name in ("ggml-org/Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-Q8_0"):
        assert after.resolve(name) is added
    assert before.resolve(added.name) is None


def test_it_takes_no_name_from_another_model_and_stays_through_a_rescan(tree):
    tree.put("Qwen3-0.6B-Q8_0.gguf")
    mine = tree.load().resolve("Qwen3-0.6B-Q8_0")
    catalog, added = tree.load().with_repository("a/Qwen3-0.6B-GGUF:Q8_0")
    catalog, other = catalog.with_repository("b/Qwen3-0.6B-GGUF:Q8_0")
    assert (added.name, other.name) == ("a/Qwen3-0.6B-GGUF:Q8_0", "b/Qwen3-0.6B-GGUF:Q8_0")
    for seen in (catalog, catalog.rescan()):
        assert seen.resolve("Qwen3-0.6B-Q8_0").path == mine.path
        assert {added.name, other.name} <= set(names(seen))
