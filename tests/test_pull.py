"""`pull` and `models` against a hub on this machine: chosen, fetched, resumed, converted, listed, refused."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny
from command_line import HALFBYTE, assert_clean_error, halfbyte
from conversions import metadata, run_command
from hub_server import Hub, Repo

from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.hub import download, store
from halfbyte.hub.pull import pull

SIZE = 300_000
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is asked, an empty store, and nobody's token."""
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HALFBYTE_MODELS_DIR", str(tmp_path / "models"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(download, "PAUSES", (0.01, 0.02))
        yield server


@pytest.fixture
def gguf_repo(hub, tiny_gguf):
    """A repository of GGUF files, one of them a real model."""
    files = {f"m-{kind}.gguf": kind.encode() + CONTENT for kind in ("Q4_K_M", "Q6_K", "UD-Q4_K_XL")}
    files |= {
        "m-Q8_0.gguf": tiny_gguf.read_bytes(),
        "mmproj-F16.gguf": CONTENT,
        "README.md": b"# m",
        "imatrix.gguf": b"x",
    }
    hub.repos["someone/m-GGUF"] = Repo(files)
    return hub.repos["someone/m-GGUF"]


def nothing_has_the_name(tmp_path):
    return not list((tmp_path / "models").glob("[!.]*/*/*"))


# ---------------------------------------------------------------------------------------------------------------------
# GGUF repositories


def test_a_quantization_is_pulled_once(hub, gguf_repo):
    calls = []
    pulled = pull("someone/m-GGUF", progress=lambda *call: calls.append(call))
    assert pulled.is_new
    assert pulled.model.name == "someone/m-GGUF:Q4_K_M"
    assert pulled.model.path.name == "m-Q4_K_M.gguf"
    assert pulled.model.path.read_bytes() == gguf_repo.files["m-Q4_K_M.gguf"]
    assert pulled.model.commit == gguf_repo.commit
    assert calls[-1] == ("pulling someone/m-GGUF:Q4_K_M", SIZE + 6, SIZE + 6)
    assert len(hub.fetched()) == 1
    again = pull("someone/m-GGUF:q4_k_m")
    assert (again.is_new, again.model) == (False, pulled.model)
    assert len(hub.fetched()) == 1


def test_a_new_version_replaces_the_old(hub, gguf_repo):
    old = pull("someone/m-GGUF:Q6_K").model
    gguf_repo.files["README.md"] = b"another commit, the same weights"
    assert not pull("someone/m-GGUF:Q6_K").is_new
    gguf_repo.files["m-Q6_K.gguf"] = CONTENT[::-1]
    new = pull("someone/m-GGUF:Q6_K")
    assert new.is_new
    assert new.model.path == old.path
    assert new.model.path.read_bytes() == CONTENT[::-1]
    assert len(store.pulled_models()) == 1


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, gguf_repo, capsys):
    """The name stands for what was pulled last; offline, for that alone."""
    older = {"m-Q4_K_M.gguf": b"older" + CONTENT}
    gguf_repo.revisions = {"v1.0": older, "refs/pr/2": {"m-Q4_K_M.gguf": b"of a branch" + CONTENT}}
    commit = Repo(older).commit

    def pulled(*words):
        code, out, err = run_command(capsys, "pull", "someone/m-GGUF", "--json", *words)
        assert code == 0, err
        model = json.loads(out)
        return model["revision"], model["commit"], store.find("someone/m-GGUF").path.read_bytes()

    assert pulled() == ("main", gguf_repo.commit, gguf_repo.files["m-Q4_K_M.gguf"])
    assert pulled("--revision", "v1.0") == ("v1.0", commit, older["m-Q4_K_M.gguf"])
    fetched = len(hub.fetched())
    assert pulled("--revision", commit) == (commit, commit, older["m-Q4_K_M.gguf"])
    assert len(hub.fetched()) == fetched
    assert pulled("--revision", commit, "--offline")[1] == commit
    assert pulled("--offline")[1] == commit
    assert pulled("--revision", "refs/pr/2")[2] == gguf_repo.revisions["refs/pr/2"]["m-Q4_K_M.gguf"]
    assert "refs/pr/2" in run_command(capsys, "models", "show", "someone/m-GGUF")[1]
    assert len(store.pulled_models()) == 1
    for words, parts in [
        (["--revision", "v9"], ["someone/m-GGUF: has no such branch, tag or commit"]),
        (["--revision", "v1.0", "--offline"], ["someone/m-GGUF at v1.0: is not on this machine", "here is refs/pr/2"]),
        (["--revision", ""], ["--revision is empty"]),
    ]:
        code, out, err = run_command(capsys, "pull", "someone/m-GGUF", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        for part in parts:
            assert part in err
    assert pulled()[0] == "main"


def test_a_checkpoint_of_a_revision_is_converted_anew(hub, tmp_path, capsys):
    folders = [tiny.build(tmp_path / name, tiny.Tiny(dtype="bf16", seed=seed)) for seed, name in enumerate("ab")]
    new, old = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in folders)
    hub.repos["a/Tiny"] = Repo(new, revisions={"v1": old})
    contents = []
    for words in ([], ["--revision", "v1"], ["--revision", "v1", "--offline"]):
        code, _, err = run_command(capsys, "pull", "a/Tiny:f16", *words)
        assert code == 0, err
        contents.append(store.find("a/Tiny:F16").path.read_bytes())
    assert contents[0] != contents[1] == contents[2]
    assert store.find("a/Tiny:F16").revision == "v1"


def test_a_manifest_without_a_revision_is_of_main(hub, gguf_repo):
    manifest = pull("someone/m-GGUF").model.folder / store.MANIFEST
    values = json.loads(manifest.read_text("utf-8"))
    del values["revision"]
    manifest.write_text(json.dumps(values))
    assert store.find("someone/m-GGUF").revision == "main"


def test_split_files_lie_together(hub):
    parts = {f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf": bytes([i]) * 5000 for i in (1, 2, 3)}
    hub.repos["a/b"] = Repo(parts)
    model = pull("a/b:Q8_0").model
    assert model.path.name == "m-Q8_0-00001-of-00003.gguf"
    assert [(model.folder / name.rpartition("/")[2]).read_bytes() for name in parts] == list(parts.values())
    assert model.nbytes == 15000


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, gguf_repo, monkeypatch):
    gguf_repo.token = "hf_secret"
    with pytest.raises(UsageError, match=r"someone/m-GGUF: no such model at .*HF_TOKEN"):
        pull("someone/m-GGUF")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull("someone/m-GGUF")
    assert [request.token for request in hub.fetched()] == [None]
    assert {request.token for request in hub.requests if "resolve" in request.path} == {"hf_secret"}


def test_a_broken_connection_goes_on_where_it_was(hub, gguf_repo):
    hub.breaks, hub.n_breaks = 100_000, 2
    assert pull("someone/m-GGUF").model.path.read_bytes() == gguf_repo.files["m-Q4_K_M.gguf"]
    assert [request.range for request in hub.fetched()] == [None, "bytes=100000-", "bytes=200000-"]


def test_the_next_pull_goes_on_where_a_broken_one_was(hub, gguf_repo, tmp_path):
    hub.breaks, hub.n_breaks = 100_000, 1

    def first(what, done, total):
        if done >= 100_000:
            hub.status, hub.breaks, hub.n_breaks = 503, 0, None

    with pytest.raises(download.BrokenTransfer, match="503"):
        pull("someone/m-GGUF", progress=first)
    assert nothing_has_the_name(tmp_path)
    hub.status, hub.breaks = None, None
    assert pull("someone/m-GGUF").model.path.read_bytes() == gguf_repo.files["m-Q4_K_M.gguf"]
    assert hub.fetched()[-1].range == "bytes=100000-"
    assert not list((tmp_path / "models/.partial").glob("*/*"))


def test_a_server_without_ranges_sends_all_again(hub, gguf_repo):
    hub.breaks, hub.n_breaks, hub.no_ranges = 100_000, 1, True
    assert pull("someone/m-GGUF").model.path.read_bytes() == gguf_repo.files["m-Q4_K_M.gguf"]
    assert [request.status for request in hub.fetched()] == [200, 200]


def test_other_bytes_than_the_hub_states_are_refused(hub, gguf_repo, tmp_path):
    hub.corrupt = True
    with pytest.raises(UsageError, match="other bytes than the hub states"):
        pull("someone/m-GGUF")
    assert nothing_has_the_name(tmp_path)
    hub.corrupt = False
    assert pull("someone/m-GGUF").model.path.read_bytes() == gguf_repo.files["m-Q4_K_M.gguf"]


def test_what_is_left_of_another_commit_is_not_mixed_in(hub, gguf_repo, tmp_path):
    gguf_repo.files["m-Q4_K_M.gguf"] = CONTENT
    hub.breaks, hub.n_breaks = 100_000, 1

    def first(what, done, total):
        if done >= 100_000:
            hub.breaks, hub.n_breaks = 0, None

    with pytest.raises(download.BrokenTransfer):
        pull("someone/m-GGUF", progress=first)
    assert [part.stat().st_size for part in (tmp_path / "models/.partial").glob("*/*.part")] == [100_000]
    gguf_repo.files["m-Q4_K_M.gguf"] = CONTENT[::-1]
    hub.breaks = None
    assert pull("someone/m-GGUF").model.path.read_bytes() == CONTENT[::-1]


@pytest.mark.skipif(os.name != "posix", reason="signals end processes otherwise here")
@pytest.mark.parametrize("kind", ["SIGINT", "SIGKILL"])
def test_an_interrupt_leaves_nothing_under_the_name_and_the_next_pull_goes_on(hub, gguf_repo, tmp_path, kind):
    hub.stalls = 200_000
    with subprocess.Popen(
        [*HALFBYTE, "pull", "someone/m-GGUF"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        end = time.monotonic() + 60
        part = []
        while not (part and part[0].stat().st_size >= 190_000) and time.monotonic() < end:
            part = list((tmp_path / "models/.partial").glob("*/*.part"))
            time.sleep(0.02)
        process.send_signal(getattr(signal, kind))
        _, told = process.communicate(timeout=60)
    if kind == "SIGINT":
        assert process.returncode == 130
        assert "the same command goes on where it was" in told
        assert "Traceback" not in told
    assert nothing_has_the_name(tmp_path)
    there = part[0].stat().st_size
    hub.stalls = None
    path = pull("someone/m-GGUF").model.path
    assert hub.fetched()[-1].range == f"bytes={there}-"
    assert path.read_bytes() == gguf_repo.files["m-Q4_K_M.gguf"]


# ---------------------------------------------------------------------------------------------------------------------
# what goes wrong is one line


def test_errors_are_one_line(hub, gguf_repo, tmp_path, capsys, monkeypatch):
    hub.repos["a/gated"] = Repo(dict(gguf_repo.files), token="hf_x", gated=True)
    for words, parts in [
        (["a/absent"], ["a/absent: no such model at", "HF_TOKEN"]),
        (["a/gated"], ["a/gated: m-Q4_K_M.gguf: is gated", f"{hub.url}/a/gated", "HF_TOKEN"]),
        (["someone/m-GGUF:Q3_K_L"], ["has no Q3_K_L", "Q4_K_M, Q6_K, Q8_0, UD-Q4_K_XL"]),
        (["nonsense"], ["'nonsense' is no name", "OWNER/REPO"]),
        (["someone/m-GGUF:Q6_K", "--type", "q8_0"], ["--type is 'q8_0'"]),
        (["someone/m-GGUF", "--offline"], ["is not on this machine", "offline"]),
    ]:
        code, out, err = run_command(capsys, "pull", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        for part in parts:
            assert part in err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    code, _, err = run_command(capsys, "pull", "someone/m-GGUF")
    assert (code, err.count("\n")) == (2, 1)
    assert "free in" in err
    assert hub.fetched() == []
    assert nothing_has_the_name(tmp_path)


def test_no_hub_there(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run_command(capsys, "pull", "a/b")
    assert (code, err.count("\n")) == (2, 1)
    assert "a/b: no connection to http://127.0.0.1:9" in err


def test_hostile_names_stay_in_the_store(hub, tmp_path):
    hub.repos["a/b"] = Repo({"../../evil-Q4_K_M.gguf": CONTENT, "ok-Q8_0.gguf": CONTENT, "C:\\x-Q4_K_M.gguf": CONTENT})
    with pytest.raises(UsageError, match="there are: Q8_0"):
        pull("a/b:Q4_K_M")
    assert not list(tmp_path.rglob("*evil*"))


# ---------------------------------------------------------------------------------------------------------------------
# checkpoints, and the list


def test_a_checkpoint_is_converted(hub, tmp_path, capsys):
    folder = tiny.build(tmp_path / "source", tiny.Tiny(dtype="bf16", shards=2))
    hub.repos["a/Tiny"] = Repo({f.name: f.read_bytes() for f in folder.iterdir()} | {"README.md": b"x"})
    code, out, err = run_command(capsys, "pull", "a/Tiny:q4_0")
    assert code == 0, err
    assert out.startswith("a/Tiny:Q4_0: ")
    assert "a/Tiny:SAFETENSORS" in err
    fetched = len(hub.fetched())
    assert run_command(capsys, "pull", "a/Tiny", "--type", "f16")[0] == 0
    assert len(hub.fetched()) == fetched
    assert [model.kind for model in store.pulled_models()] == ["F16", "Q4_0", "SAFETENSORS"]
    code, out, _ = run_command(capsys, "inspect", "a/Tiny:F16")
    assert code == 0
    assert "Tiny" in out
    assert run_command(capsys, "convert", "a/Tiny", tmp_path / "direct.gguf", "--type", "f16")[0] == 0
    assert (tmp_path / "direct.gguf").read_bytes() == store.find("a/Tiny:F16").path.read_bytes()
    code, _, err = run_command(capsys, "tokenize", "a/Tiny", "x")
    assert (code, "which one? there are a/Tiny:F16, a/Tiny:Q4_0" in err) == (2, True)


def test_how_a_checkpoint_embeds_texts_is_pulled_too(hub, tmp_path, capsys):
    folder = tiny.build(tmp_path / "source", tiny.Tiny(dtype="bf16"))
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    modules = [{"path": path, "type": f"models.{path[2:]}"} for path in ("0_Transformer", "1_Pooling")]
    files |= {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b'{"pooling_mode_lasttoken": true}',
    }
    files |= {"onnx/config.json": b"{}", "2_Dense/config.json": b"{}", "x/1_Pooling/config.json": b"{}"}
    hub.repos["a/Tiny"] = Repo(files)
    code, out, err = run_command(capsys, "pull", "a/Tiny:f16", "--json")
    assert code == 0, err
    assert metadata(json.loads(out)["path"])["llama.pooling_type"] == 3
    held = store.find("a/Tiny:SAFETENSORS").content
    assert {f.name for f in held.iterdir() if f.is_dir()} == {"1_Pooling"}


def test_models_are_listed_shown_used_and_removed(hub, gguf_repo, tmp_path, capsys, monkeypatch):
    assert "no models in" in run_command(capsys, "models")[1]
    assert run_command(capsys, "pull", "someone/m-GGUF:Q8_0")[0] == 0
    listed = run_command(capsys, "models")[1]
    assert "someone/m-GGUF:Q8_0" in listed
    assert "m-Q8_0.gguf" in listed
    code, out, _ = run_command(capsys, "models", "show", "someone/m-GGUF")
    assert code == 0
    assert gguf_repo.commit in out
    hub.repos.clear()  # from here on nobody is asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_command(capsys, "pull", "someone/m-GGUF:Q8_0")[0] == 0
    assert run_command(capsys, "tokenize", "someone/m-GGUF", "hello")[0] == 0
    code, out, err = run_command(capsys, "run", "someone/m-GGUF:Q8_0", "Once", "-n", "2", "-t", "1")
    assert code == 0, err
    assert run_command(capsys, "models", "rm", "someone/m-GGUF:Q8_0")[0] == 0
    assert "no models in" in run_command(capsys, "models")[1]
    assert list((tmp_path / "models").glob("[!.]*")) == []
    for words in (["models", "rm", "someone/m-GGUF:Q8_0"], ["models", "drop"], ["run", "someone/m-GGUF:Q8_0", "x"]):
        code, _, err = run_command(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)


def test_a_damaged_manifest_is_told_and_passed_over(hub, gguf_repo):
    model = pull("someone/m-GGUF:Q6_K").model
    pull("someone/m-GGUF:Q4_K_M")
    (model.folder / store.MANIFEST).write_text("{}")
    with pytest.warns(UserWarning, match="pull the model again"):
        assert [model.kind for model in store.pulled_models()] == ["Q4_K_M"]


def test_a_command_of_its_own_says_mistakes_in_one_line(hub):
    assert_clean_error(halfbyte("pull", "no-slash"), 2, "OWNER/REPO")
    assert issubclass(download.BrokenTransfer, HalfbyteError)
