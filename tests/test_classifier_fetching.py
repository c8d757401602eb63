"""`fetch`: from a hub on loopback; afterwards nothing asks a hub, and a changed byte is found."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from classifier.cli import main
from classifier.ensembles import fetching
from tests import pictures, processes
from tests.models import clip_model, recipe, timm_model, timm_table

COMMAND = Path(sys.executable).parent / "pictrs-classifier"
COMMIT = "c0ffee" + "0" * 34


class Hub:
    """Serves folders as the hub does: large files by their SHA-256, small ones by git's name for them."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                owner, name, word, revision, file = [*self.path.strip("/").split("/"), *[""] * 5][:5]
                path = repositories.get(f"{owner}/{name}", Path("/nowhere")) / file
                known = f"{owner}/{name}" in repositories
                if revision != "main":
                    path = Path("/nowhere")
                if word != "resolve" or not path.is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content)))
                if path.suffix == ".safetensors":
                    self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                else:
                    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    self.send_header("ETag", f'"{git}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(
        {
            "tests/timm": timm_model(tmp_path / "theirs/timm"),
            "tests/clip": clip_model(tmp_path / "theirs/clip"),
        }
    )
    yield hub
    hub.close()


def run(tmp_path: Path, hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as an admin runs it, with caches of its own."""
    own = {
        "HF_HOME": str(tmp_path / "hub"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.url,
    }
    # None of these two asks a hub anything; whatever may, each command imports for itself.
    imported = ("torch", "torch._dynamo")
    return processes.run([COMMAND, *arguments], env=own, check=False, within_s=60, imported=imported)


CONCEPTS = (
    'kind = "concepts"\nmodel = "hf-hub:tests/clip"\ndevice = "cpu"\n'
    '[heads.signals.animal]\nyes = ["a photo of an animal"]\nno = ["a landscape"]\n'
)


def test_only_fetch_asks_a_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    path = recipe(tmp_path, timm_table("hf-hub:tests/timm"), CONCEPTS)
    picture = tmp_path / "picture.png"
    picture.write_bytes(pictures.png())
    before = run(tmp_path, hub, "score", "--ensemble", path, str(picture))
    assert before.returncode == 1
    missing = f"hf-hub:tests/timm: its files are not here; fetch them: pictrs-classifier fetch {path}"
    assert missing in before.stderr
    assert hub.asked == []

    fetched = run(tmp_path, hub, "fetch", path)
    assert fetched.returncode == 0, fetched.stderr
    table = fetched.stdout.splitlines()
    names = ["config.json", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors"]
    assert [line.split()[1] for line in table[1:-1]] == names
    assert all("as the hub says" in line for line in table[1:-1])
    assert hashlib.sha256((tmp_path / "theirs/timm/model.safetensors").read_bytes()).hexdigest() in table[2]
    assert len(list((tmp_path / "cache/pictrs-gate/phrases").iterdir())) == 1
    assert table[-1].startswith("own is here, version ")

    hub.asked.clear()
    scored = run(tmp_path, hub, "score", "--ensemble", path, str(picture))
    assert scored.returncode == 0, scored.stderr
    assert hub.asked == []


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets this process see the hub at a URL, with a cache of its own: what `HF_ENDPOINT`, `HF_HOME` and
    `HF_HUB_OFFLINE` would do in a new one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
    (tmp_path / "harnesses.json").write_text("{}")

    def see(url: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return see


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_found_and_left_for_a_human(
    tmp_path: Path,
    hub: Hub,
    within: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    within(hub.url)
    path = recipe(tmp_path, timm_table("hf-hub:tests/timm"))
    assert main(["fetch", path]) == 0
    version = capsys.readouterr().out.split()[-1]
    within("")
    assert main(["info", path]) == 0
    assert f"version    {version}" in capsys.readouterr().out

    blob = (tmp_path / f"hub/models--tests--timm/snapshots/{COMMIT}/{name}").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    for url in (hub.url, ""):  # where HF_HUB_OFFLINE is an admin's own wish, what is here is checked
        within(url)
        assert main(["fetch", path]) == 1
        said = capsys.readouterr()
        assert f"models--tests--timm/snapshots/{COMMIT}/{name}" in said.err
        assert sum("BROKEN" in line for line in said.out.splitlines()) == 1
    assert blob.read_bytes() == bytes(content)


def test_info_explains_what_is_not_here(
    tmp_path: Path, hub: Hub, within: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    within("")
    path = recipe(tmp_path, timm_table("hf-hub:tests/timm"), CONCEPTS)
    assert main(["info", path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for expected in (
        "version not known yet",
        f"pictrs-classifier fetch {path}",
        "hf-hub:tests/timm: not here",
        "yes a photo of an animal no a landscape",
    ):
        assert expected in said, said
    assert hub.asked == []


@pytest.mark.parametrize("model", ["tests/nothing", "tests/empty", "tests/timm@nowhere", "no name"])
def test_what_the_hub_has_not_is_an_error_that_names_it(
    tmp_path: Path, hub: Hub, within: Callable[[str], None], capsys: pytest.CaptureFixture[str], model: str
) -> None:
    within(hub.url)
    assert main(["fetch", recipe(tmp_path, timm_table(f"hf-hub:{model}"))]) == 1
    assert f"hf-hub:{model}: " in capsys.readouterr().err.splitlines()[-1]


def test_a_hub_that_refuses_is_a_readable_error(
    tmp_path: Path, within: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    within(f"http://127.0.0.1:{port}")
    assert main(["fetch", recipe(tmp_path, timm_table("hf-hub:tests/timm"))]) == 1
    said = capsys.readouterr().err
    assert f"hf-hub:tests/timm: cannot be fetched from http://127.0.0.1:{port}: " in said


def test_a_hub_that_says_nothing_is_given_up(
    tmp_path: Path,
    within: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "_HUB_ANSWERS_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        within(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert main(["fetch", recipe(tmp_path, timm_table("hf-hub:tests/timm"))]) == 1
        assert time.monotonic() - began < 10
    assert "cannot be fetched from" in capsys.readouterr().err


def test_an_ensemble_whose_packages_bring_everything_has_nothing_to_fetch(
    within: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    within("http://127.0.0.1:9")
    assert main(["fetch", "starter"]) == 0
    assert "starter is here, version" in capsys.readouterr().out
