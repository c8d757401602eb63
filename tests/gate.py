"""A running gate and a running classifier, as an operator starts them, with everything in one folder."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxy import parts
from proxy.cases.deciding import Decider
from proxy.cases.sealing import write_new_identity
from proxy.config import load
from proxy.database import Database, LedgerEntry, cases, ledger
from proxy.review.terminal import facts_of
from tests import migrated, processes
from tests.client import Answer, upload
from tests.processes import Program, answers, free_port, run

TOKEN = "a-token-for-tests-only"
_BIN = Path(sys.executable).parent
RULES: Sequence[Mapping[str, Any]] = ({"name": "a suspicion", "at_least": {"sexual": 0.5, "minor": 0.35}},)


class Classifier:
    """A running `pictrs-classifier`."""

    def __init__(
        self,
        folder: Path,
        *,
        ensemble: str | Path = "starter",
        port: int | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        token_file = folder / "token"
        token_file.write_text(TOKEN)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        listen = ["--listen", f"127.0.0.1:{self.port}", "--token-file", token_file]
        if processes.forks is not None and "--workers" not in options:
            options = ["--workers", "1", *options]  # starting one is most of what a test's classifier costs
        command = [_BIN / "pictrs-classifier", "serve", "--ensemble", ensemble, *listen, *options]
        self.program = Program(command, folder / "classifier.log", env=env)
        self.program.wait_until(lambda: answers(f"{self.url}/readyz"), within_s=60)

    def stop(self) -> None:
        """Ends it."""
        self.program.stop()


def scripted(
    folder: Path, hits: Mapping[bytes, Mapping[str, float]], otherwise: Mapping[str, float] | None = None
) -> Path:
    """The recipe of an ensemble that gives each content in `hits` its signals, all others next to none."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        f'"{hashlib.sha256(content).hexdigest()}" = {_value(signals)}' for content, signals in hits.items()
    ]
    recipe = folder / "scripted.toml"
    recipe.write_text(
        'name = "scripted"\nabout = "for tests"\n[[heads]]\nkind = "scripted"\n'
        f"otherwise = {_value(otherwise or {'sexual': 0.01, 'minor': 0.02})}\n[heads.files]\n"
        + "\n".join(files)
    )
    return recipe


class DialledIn:
    """A running `pictrs-classifier connect`."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        ensemble: str | Path,
        options: Sequence[str | Path] = (),
        until: str = "linked to",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        token_file = folder / "token"
        token_file.write_text(TOKEN)
        words = ["connect", url, "--ensemble", ensemble, "--token-file", token_file, *options]
        self.program = Program([_BIN / "pictrs-classifier", *words], folder / "classifier.log")
        self.program.wait_until(lambda: until in self.program.output(), within_s=60)

    def stop(self) -> int:
        """Ends it; returns its exit status."""
        return self.program.stop()


class Gate:
    """A running `pictrs-gate` with keys, cases and database in a folder of its own.

    Without a `classifier_url` its classifiers dial in.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pictrs_url: str,
        api_key: str | None,
        classifier_url: str | None,
        rules: Sequence[Mapping[str, Any]] = RULES,
        policy: Mapping[str, Any] | None = None,
        pictrs: Mapping[str, Any] | None = None,
        server: Mapping[str, Any] | None = None,
        internal: Mapping[str, Any] | None = None,
        fetching: Mapping[str, Any] | None = None,
        cases: Mapping[str, Any] | None = None,
        token: str = TOKEN,
        database_url: str | None = None,
        env: Mapping[str, str] | None = None,
        log_level: str = "debug",
        start: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database_url = database_url or f"sqlite:///{folder}/gate.db"
        self.folder, self._log_level = folder, log_level
        self.port, self.internal_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.internal_url = f"http://127.0.0.1:{self.internal_port}"
        self.config = folder / "gate.toml"
        self.key = folder / "reviewer.key"
        self.recipient = write_new_identity(self.key)
        (folder / "classifier-token").write_text(token)
        self.cases_folder = folder / (cases or {}).get("folder", "cases")
        sections: dict[str, Mapping[str, Any]] = {
            "server": {"listen": f"127.0.0.1:{self.port}", **(server or {})},
            "internal": {"listen": f"127.0.0.1:{self.internal_port}", **(internal or {})},
            "fetching": fetching or {},
            "pictrs": {
                "url": pictrs_url,
                "max_file_count": 4,
                **({"api_key": api_key} if api_key else {}),
                **(pictrs or {}),
            },
            "policy": policy or {},
            "cases": {
                "folder": "cases",
                "recipients": [self.recipient],
                "identity_file": "reviewer.key",
                **(cases or {}),
            },
            "database": {"url": database_url or "sqlite:///gate.db"},
        }
        tables = [(f"[{name}]", values) for name, values in sections.items()]
        asked = {"kind": "worker"} if classifier_url is None else {"url": classifier_url}
        tables.append(("[[classifiers]]", {**asked, "token_file": "classifier-token"}))
        tables += [("[[policy.rules]]", rule) for rule in rules]
        self.config.write_text("\n".join(_table(head, values) for head, values in tables))
        self.program: Program | None = None
        if start:
            self.start(env)

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Starts it, with more environment."""
        self._have_tables()
        command = [_BIN / "pictrs-gate", "--log-level", self._log_level, "serve", "--config", self.config]
        self.program = Program(command, self.folder / "gate.log", env=env)
        self.program.wait_until(lambda: answers(f"{self.url}/healthz"))

    def stop(self) -> int:
        """Ends it; returns its exit status."""
        assert self.program is not None
        return self.program.stop()

    def run(
        self, *words: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of `pictrs-gate` beside it."""
        command = [_BIN / "pictrs-gate", "--log-level", "warning", *words]
        return run(command, check=check, cwd=self.folder, env=env)

    def review(
        self, *words: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`pictrs-gate review …` with its configuration."""
        return self.run("review", *words, "--config", str(self.config), check=check, env=env)

    def decide(self, decision: str, case_id: str | None = None) -> str:
        """Releases or confirms a case (the newest one), as `review` does but without starting a program."""

        async def run() -> None:
            async with parts.built(load(self.config)) as made:
                decider = Decider(
                    made.database, made.quarantine, made.known, made.lookout, made.pictrs, made.fault
                )
                await getattr(decider, decision)(case_id, identity_file=self.key, reviewer="test")

        case_id = case_id or self.cases()[0]["id"]
        asyncio.run(run())
        return case_id

    def cases(self) -> list[dict[str, Any]]:
        """All cases, newest first, as `review list --json` gives them; read beside the gate, for speed."""
        with self.database() as database:
            return [facts_of(case) for case in cases.listed(database)]

    def ledger(self, *, about_itself: bool = False) -> list[LedgerEntry]:
        """All entries, their chain checked; those about the gate itself (settings and the like) if asked."""
        own = () if about_itself else (ledger.SETTINGS, ledger.KEY, ledger.CHECKPOINT)
        with self.database() as database:
            assert ledger.first_broken(database) is None
            return [entry for entry in ledger.entries(database) if entry.act not in own]

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Its database, opened a second time."""
        self._have_tables()
        opened = Database(self.database_url)
        try:
            yield opened
        finally:
            opened.close()

    def upload(self, *contents: bytes, query: str = "") -> Answer:
        """Uploads through it."""
        return upload(self.url, *contents, query=query)

    def log(self) -> str:
        """What it has logged."""
        assert self.program is not None
        return self.program.output()

    def _have_tables(self) -> None:
        """Where time counts: makes its database, if there is none and it is a file in its folder."""
        file = self.folder / "gate.db"
        if processes.forks is not None and self.database_url == f"sqlite:///{file}" and not file.exists():
            migrated.new(file)


class Twin:
    """A second gate with the configuration, the database and the cases of another one."""

    def __init__(self, gate: Gate) -> None:
        self.port, internal = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        text = gate.config.read_text().replace(f":{gate.port}", f":{self.port}")
        config = gate.folder / "second.toml"
        config.write_text(text.replace(f":{gate.internal_port}", f":{internal}"))
        self.program = Program(
            [_BIN / "pictrs-gate", "serve", "--config", config], gate.folder / "second.log"
        )
        self.program.wait_until(lambda: answers(f"{self.url}/healthz"))


def _table(head: str, values: Mapping[str, Any]) -> str:
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in values.items())])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)
