"""Models to the hub and back, by a hub of this machine: a few of its calls over HTTP."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from bezierdistill import Stream, noise
from bezierdistill.cli import main
from bezierdistill.errors import UserError
from bezierdistill.hub import is_name, local_folder
from bezierdistill.interop import import_diffusers
from bezierdistill.models import Model, load_model, save_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ModelCard, Passes, TeacherRef, to_json
from bezierdistill.stages.push import public
from tiny_diffusers import BYTES, SHAPE, save_pipeline, tiny_unet

NAME = "someone/digits"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """A hub that serves folders by name, and counts what was asked for."""

    models: dict[str, Path]
    asked: list[str]


class Answer(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0], self.server
        assert isinstance(hub, Hub)
        hub.asked.append(path)
        for name, folder in hub.models.items():
            if path.startswith(f"/api/models/{name}"):
                files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
                names = [f.relative_to(folder).as_posix() for f in files]
                listed = [{"rfilename": own} for own in names]
                told: Any = {"id": name, "sha": COMMIT, "siblings": listed, "tags": []}
                if "/tree/" in path:
                    told = [
                        {"type": "file", "path": own, "size": f.stat().st_size, "oid": "0" * 40}
                        for own, f in zip(names, files, strict=True)
                    ]
                return self.send(json.dumps(told).encode(), "application/json")
            start = f"/{name}/resolve/{COMMIT}/"
            if path.startswith(start) and (folder / path.removeprefix(start)).is_file():
                return self.send((folder / path.removeprefix(start)).read_bytes(), "text/plain")
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        for key, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{sha1(content).hexdigest()}"',
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this machine, by which huggingface_hub fetches into a cache of the test's own."""
    server = Hub(("127.0.0.1", 0), Answer)
    server.models, server.asked = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    api = huggingface_hub.HfApi(endpoint=url, token="of-the-test")
    fetch = huggingface_hub.snapshot_download

    def fetched(name: str, **given: Any) -> str:
        return fetch(name, endpoint=url, cache_dir=tmp_path / "cache", **given)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: api.token)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def student(folder: Path) -> Model:
    """A student, in a folder with what a run leaves there, whose card names places."""
    network = NetworkConfig("mlp", 16, 2)
    card = ModelCard(
        kind="student",
        network=to_json(network),
        shape=SHAPE,
        scaling=BYTES,
        seed=0,
        steps=3,
        passes=Passes(training=7),
        knots={1: (0.0, 1.0), 2: (0.0, 0.6, 1.0)},
        data=f"{folder.parent}/my photos.npz@key=faces",
        teachers=(TeacherRef(path="../../secret/strong", digest="ab" * 32),),
        settings={"curves": f"{folder.parent}/secret/curves", "seed": 0},
    )
    model = save_model(folder, Model(network.build(SHAPE, 3).eval(), card))
    for name in ("made.json", "README.txt", "run.json"):
        (folder / name).write_text(f"{folder}")
    (folder / "state-student.safetensors").write_bytes(b"state")
    (folder / "metrics.json").write_text(json.dumps({"of": str(folder / "samples.npz")}))
    return model


def test_what_is_pushed_loads_again_and_names_no_place(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = student(tmp_path / "run")
    made: list[Any] = []

    def upload(repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        hub.models[repo_id] = Path(shutil.copytree(folder_path, tmp_path / "sent"))

    monkeypatch.setattr(
        huggingface_hub, "create_repo", lambda name, **given: made.append(given) or f"at/{name}"
    )
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    line = f"push --model {tmp_path}/run --to {NAME} --private --json"
    assert main(line.split()) == 0
    files = ["README.md", "metrics.json", "model.json", "model.safetensors"]
    assert json.loads(capsys.readouterr().out)["files"] == files
    assert made == [{"private": True, "exist_ok": True}]
    sent = {path.name: path.read_bytes() for path in (tmp_path / "sent").iterdir()}
    assert sorted(sent) == files
    for name, content in sent.items():
        for secret in (str(tmp_path), "secret", "/tmp", str(Path.home())):
            assert secret.encode() not in content, (name, secret)
    assert f'load_model("{NAME}")' in sent["README.md"].decode()
    assert "my photos.npz@key=faces" in sent["README.md"].decode()

    again = load_model(NAME)
    x0 = noise(0, Stream.SAMPLE, range(4), SHAPE)
    for passes in (1, 2):
        assert torch.equal(again.generate(x0, passes), model.generate(x0, passes))
    assert again.digest == model.digest
    assert not any(path.endswith((".md", ".py")) for path in hub.asked)
    assert main(["sample", "--model", NAME, "--count", "2", "--out", str(tmp_path / "x.npz")]) == 0


def test_a_network_of_the_hub_is_imported_once_its_settings_are_of_use(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = tiny_unet()
    hub.models["someone/ddpm"] = save_pipeline(tmp_path / "ddpm-files", unet, "epsilon")
    (tmp_path / "ddpm-files" / "evil.py").write_text("raise SystemExit")
    line = ["import", "--source", "someone/ddpm", "--out", str(tmp_path / "out")]
    assert main([*line, "--prediction", "sample"]) == 2
    assert "prediction is 'sample', the scheduler of" in capsys.readouterr().err
    assert not any(path.endswith(".safetensors") for path in hub.asked)
    assert main(line) == 0
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "someone/ddpm predicts epsilon" in told.err
    assert "one pass of a student is hard to learn" in told.err
    model = load_model(tmp_path / "out")
    same = import_diffusers(tmp_path / "ddpm-files", tmp_path / "same")
    assert model.digest == same.digest
    assert model.card.settings["folder"] == "someone/ddpm"
    assert not any(path.endswith(".py") for path in hub.asked)


def test_what_the_hub_does_not_have_is_told_in_a_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="nobody/nothing is no folder here, and the hub has none"):
        load_model("nobody/nothing")
    student(tmp_path / "run")
    push = ["push", "--model", str(tmp_path / "run"), "--to"]
    assert main([*push, "digits"]) == 2
    assert "to is 'digits', expected a name on the hub: OWNER/NAME" in capsys.readouterr().err

    def away(*args: Any, **given: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "create_repo", away)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    assert main([*push, NAME]) == 2
    reached = f"bezierdistill push: {NAME}: the hub cannot be reached: expected a network\n"
    assert capsys.readouterr().err == reached
    with pytest.raises(UserError, match="and the hub cannot be reached: expected a network"):
        load_model(NAME)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main([*push, NAME]) == 2
    told = capsys.readouterr().err
    assert "nobody is logged in: hf auth login" in told
    assert told.count("\n") == 1
    assert main(["push", "--model", str(tmp_path), "--to", NAME]) == 2


def test_a_path_in_a_folder_that_is_there_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_name(NAME)
    (tmp_path / "someone").mkdir()
    assert not is_name(NAME)
    assert local_folder(NAME) == Path(NAME)
    for path in ("digits", "a/b/c", "./a/b", "/a/b", "~/b", "../b", "a/", "-a/b"):
        assert not is_name(path), path


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("/home/me/my data.npz@key=x", "my data.npz@key=x"),
        ("../strong", "strong"),
        ("../../me/strong", "strong"),
        ("~/runs/x", "x"),
        ("curves of /home/me/c", "curves of c"),
        ("C:\\Users\\me\\c", "c"),
        ("hf:owner/name", "hf:owner/name"),
        ("runs/teacher", "runs/teacher"),
        ("https://huggingface.co/owner/name", "https://huggingface.co/owner/name"),
        (["/a/b", {"k": "/a/c"}, 3], ["b", {"k": "c"}, 3]),
    ],
)
def test_places_are_left_out(told: Any, left: Any) -> None:
    assert public(told) == left
