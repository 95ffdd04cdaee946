"""The user's own llama.cpp checkout, patches, and damaged downloads."""

import os
import subprocess
import time

import adopt_times
import pytest

PATCH = """\
diff --git a/src/llama-model.cpp b/src/llama-model.cpp
--- a/src/llama-model.cpp
+++ b/src/llama-model.cpp
@@ -1,2 +1,3 @@
 first
+inserted
 second
"""


@pytest.fixture
def checkout(tmp_path):
    """The least that counts as llama.cpp, under git, with an ignored file."""
    folder = tmp_path / "my llama.cpp"
    for name, text in {
        "src/llama-model.cpp": "first\nsecond\n",
        "ggml/include/gguf.h": "// header\n",
        ".gitignore": "*.bin\n",
        "model.bin": "large\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git = ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    return folder


@pytest.fixture
def patches(tmp_path):
    folder = tmp_path / "the patches"
    folder.mkdir()
    (folder / "0001-insert.patch").write_text(PATCH)
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".git/" not in str(p)}


@pytest.mark.parametrize("inside_a_repository", [False, True])
def test_a_copy_is_patched_and_the_checkout_left_alone(run_script, tmp_path, checkout, patches, inside_a_repository):
    # Inside another repository 'git apply' skips files without a word unless it is kept from it.
    if inside_a_repository:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    before, into = contents(checkout), tmp_path / "out" / "src tree"
    result = run_script("fetch-llama.sh", "--into", into, LLAMA_CPP_DIR=checkout, STATECELLS_PATCHES_DIR=patches)
    assert result.returncode == 0, result.stderr
    assert contents(checkout) == before
    assert (into / "src/llama-model.cpp").read_text() == "first\ninserted\nsecond\n"
    assert not (into / "model.bin").exists()
    assert not (into / ".git").exists()


def test_a_checkout_without_git_is_taken_whole_but_for_builds(run_script, tmp_path, checkout, patches):
    subprocess.run(["rm", "-rf", checkout / ".git"], check=True)
    (checkout / "build").mkdir()
    (checkout / "build/object.o").write_text("x")
    into = tmp_path / "out"
    result = run_script("fetch-llama.sh", "--into", into, LLAMA_CPP_DIR=checkout, STATECELLS_PATCHES_DIR=patches)
    assert result.returncode == 0, result.stderr
    assert (into / "model.bin").exists()
    assert not (into / "build").exists()


def test_the_patch_that_does_not_apply_is_named(run_script, tmp_path, checkout, patches):
    (patches / "0002-other.patch").write_text(PATCH)  # the second time its context is gone
    into = tmp_path / "out"
    result = run_script("fetch-llama.sh", "--into", into, LLAMA_CPP_DIR=checkout, STATECELLS_PATCHES_DIR=patches)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: 0002-other.patch does not apply")
    assert f"LLAMA_CPP_DIR={checkout}" in last
    assert list(tmp_path.glob("out*")) == []


def test_the_id_follows_the_files(run_script, checkout):
    def identify():
        result = run_script("fetch-llama.sh", "--id", LLAMA_CPP_DIR=checkout)
        assert result.returncode == 0, result.stderr
        return result.stdout

    first = identify()
    (checkout / "model.bin").write_text("ignored files do not count\n")
    assert identify() == first
    (checkout / "src/llama-model.cpp").write_text("first\nsecond\nthird\n")
    assert identify() != first


def test_any_other_folder_is_refused(run_script, tmp_path):
    result = run_script("fetch-llama.sh", LLAMA_CPP_DIR=tmp_path)
    assert result.returncode == 1
    assert f"LLAMA_CPP_DIR={tmp_path} is no llama.cpp checkout" in result.stderr


def test_a_damaged_download_is_not_used(run_script, tmp_path, patches):
    downloads = tmp_path / "the cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / "llama_cpp_python-0.3.36.tar.gz").write_bytes(b"not it")
    result = run_script("fetch-llama.sh", "--into", tmp_path / "out", STATECELLS_PATCHES_DIR=patches)
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert not (tmp_path / "out").exists()


def test_new_files_come_with_the_patches(run_script, tmp_path, checkout, patches):
    (patches / "src").mkdir()
    (patches / "src/new.cpp").write_text("new\n")
    into = tmp_path / "out"
    result = run_script("fetch-llama.sh", "--into", into, LLAMA_CPP_DIR=checkout, STATECELLS_PATCHES_DIR=patches)
    assert result.returncode == 0, result.stderr
    assert (into / "src/new.cpp").read_text() == "new\n"


def test_only_changed_files_look_new(tmp_path):
    """An object built between two states of the source must be older than exactly what changed."""
    old, new, before = tmp_path / "old", tmp_path / "new", 1_000_000_000
    for folder, files in ((old, {"same": "1", "patched": "1", "gone": "1"}), (new, {"same": "1", "patched": "2", "added": "1"})):
        (folder / "deep").mkdir(parents=True)
        for name, text in files.items():
            (folder / "deep" / name).write_text(text)
            os.utime(folder / "deep" / name, (before, before))
    built = time.time() - 1
    adopt_times.adopt_times(old, new)
    times = {p.name: p.stat().st_mtime for p in (new / "deep").iterdir()}
    assert times["same"] == before
    assert times["patched"] > built
    assert times["added"] > built
