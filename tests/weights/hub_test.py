"""Upload to and download from the Hugging Face hub, of which a stand-in answers on the loopback."""

import json
import os
import subprocess
import sys

import huggingface_hub
import pytest

import vlbert_jax
from tests.helpers import HANG_SECONDS, ROOT
from tests.helpers.hub_server import TOKEN, hub
from tests.helpers.weights_case import run
from vlbert_jax.weights.export import WRITTEN
from vlbert_jax.weights.hub import download_folder, push_folder

IMAGE, BOXES = ROOT / "examples/scene.jpg", ROOT / "examples/scene.json"
QUESTION = "what color is the large fish?"
# The commands in one process, because each import of JAX takes seconds. Prints status, output and errors of each.
PROGRAM = """
import contextlib, io, json, os, sys
from vlbert_jax import convert, predict
for command, token, arguments in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        status = dict(convert=convert, predict=predict)[command].main(arguments)
    print(json.dumps((status, out.getvalue(), error.getvalue())))
"""


def call(address, home, *commands):
    environment = os.environ | dict(HF_ENDPOINT=address, HF_HOME=str(home))
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(
        program, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr and "hf_wrong" not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_goes_to_the_hub_and_answers_from_there(tmp_path):
    out, asked = str(tmp_path / "out"), [f"--image={IMAGE}", f"--boxes={BOXES}", "--question", QUESTION]
    with hub() as (address, repositories):
        results = call(
            address, tmp_path / "home",
            ("convert", "", ["demo-vqa", out, "--push=me/fish"]),
            ("convert", "hf_wrong", ["demo-vqa", out, "--push=me/fish"]),
            ("convert", TOKEN, ["demo-vqa", out, "--push=me/fish", "--overwrite"]),
            ("predict", TOKEN, ["--checkpoint=hf:me/fish", *asked]),
            ("predict", TOKEN, ["--checkpoint=hf:me/fisch", *asked]),
        )  # fmt: skip
        uploaded = set(repositories["me/fish"])
    absent, refused, pushed, answered, misspelt = results
    assert absent == [2, "", "error: --push=me/fish: nobody is logged in; run `hf auth login`, or set HF_TOKEN\n"]
    assert refused[0] == 2 and "the hub answered 401: the token has no right to do this" in refused[2]
    assert refused[2].count("\n") == 1 and f"{out} is complete, but it was not uploaded to me/fish" in refused[2]
    assert pushed[0] == 0 and pushed[1].endswith(f"uploaded: {address}/me/fish; in vlbert_jax its name is hf:me/fish\n")
    assert uploaded == {str(p.relative_to(out)) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"README.md", "config.json", "vocabularies/answers.txt", "vocabularies/vocab/vocab.txt"} < uploaded
    best = vlbert_jax.load("demo-vqa").answer(IMAGE, QUESTION, BOXES)[0]
    assert answered[0] == 0 and f"{best.text} {best.probability:.0%}" in answered[1]
    assert misspelt[0] == 2 and misspelt[2].count("\n") == 1
    assert "hf:me/fisch cannot be read: there is no model me/fisch, or it is private: check the name" in misspelt[2]


def test_only_a_folder_with_a_full_name_is_uploaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for target, reason in (("out.safetensors", "but {} is a file"), ("folder", "give USER/NAME")):
        push = "--push=me/fish" if reason.startswith("but") else "--push=fish"
        said = run("demo-vqa", tmp_path / target, push, capsys=capsys, code=2)
        assert reason.format(tmp_path / target) in said and not (tmp_path / target).exists()


def test_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    with hub() as (address, _):
        pass  # nothing listens there any more
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    download_folder.cache_clear()
    for name in ("hf:me/fish", "me/fish"):
        with pytest.raises(FileNotFoundError, match="hf:me/fish cannot be read: the hub cannot be reached; check the"):
            vlbert_jax.load(name)
    with pytest.raises(FileNotFoundError, match=r"hf:a/b/c is no name of the Hugging Face hub; give hf:USER/NAME"):
        vlbert_jax.load("hf:a/b/c")


def test_other_files_stay_here(tmp_path, monkeypatch):
    """A folder may have received files since it was written; they are not uploaded."""
    folder = tmp_path / "folder"
    for name in ("state/a", "vocabularies/vocab/vocab.txt", "README.md", "notes.txt", "checkpoints/1", ".cache/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"---\nlicense: mit\n---\n{name}")
    with hub() as (address, repositories):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert push_folder(folder, "me/fish", WRITTEN) == f"{address}/me/fish"
    assert set(repositories["me/fish"]) == {"state/a", "vocabularies/vocab/vocab.txt", "README.md"}
