"""Gates on one PostgreSQL: what one has promised the others know; a server that restarts loses nothing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from tests import pictures
from tests.client import get, upload
from tests.gate import Gate, Twin
from tests.pictrs import Pictrs
from tests.postgresql import LOCKED, PASSWORD, Postgresql

NewGate = Callable[..., Gate]


def shows_a_placeholder(url: str, alias: str) -> bool:
    shown = get(url, f"/image/original/{alias}")
    return shown.status == 200 and shown.headers["cache-control"] == "no-store"


def shows_the_picture(url: str, alias: str) -> bool:
    shown = get(url, f"/image/original/{alias}")
    return shown.status == 200 and shown.headers["cache-control"].startswith("public")


def promised(url: str, content: bytes) -> str:
    """Uploads a hit; its alias."""
    answer = upload(url, content)
    assert answer.status == 201
    alias: str = answer.json()["files"][0]["file"]
    return alias


def test_a_case_lives_in_postgresql_as_it_does_in_a_file(
    new_gate: NewGate, postgresql: Postgresql, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    database_url = postgresql.new_database(migrated=False)
    gate = new_gate(start=False, database_url=database_url.replace("gate@", f"{LOCKED}@"))
    (gate.folder / "password").write_text(PASSWORD)
    gate.config.write_text(
        gate.config.read_text().replace("[database]", '[database]\npassword_file = "password"')
    )
    gate.database_url = database_url
    gate.start()
    harmless, harmful = hits.pop(), hits.pop()
    aliases = [promised(gate.url, content) for content in (harmless, harmful)]
    gate.stop()
    gate.start()
    assert all(shows_a_placeholder(gate.url, alias) for alias in aliases)
    released, confirmed = (
        next(case["id"] for case in gate.cases() if case["alias"] == alias) for alias in aliases
    )
    gate.decide("release", released)
    gate.decide("confirm", confirmed)
    assert shows_the_picture(gate.url, aliases[0])
    assert shows_a_placeholder(gate.url, aliases[1])
    assert get(running_pictrs.url, f"/image/original/{aliases[1]}").status == 404
    assert gate.upload(harmless).status == 201
    assert gate.upload(harmful).json()["code"] == "failed-external-validation"
    assert [entry.act for entry in gate.ledger()] == [
        *("pending", "pending", "releasing", "released", "confirmed", "blocked")
    ]
    listed = gate.review("list", "--json").stdout
    assert released in listed and confirmed in listed
    assert PASSWORD not in gate.log() + listed


def test_two_gates_on_one_database_know_at_once_what_the_other_one_knows(
    new_gate: NewGate, postgresql: Postgresql, hits: list[bytes]
) -> None:
    first = new_gate(database_url=postgresql.new_database())
    second = Twin(first)
    try:
        harmless, harmful = hits.pop(), hits.pop()
        by_first, by_second = promised(first.url, harmless), promised(second.url, harmful)
        for url in (first.url, second.url):
            assert shows_a_placeholder(url, by_first) and shows_a_placeholder(url, by_second)
        ids = {case["alias"]: case["id"] for case in first.cases()}
        first.decide("release", ids[by_first])
        assert shows_the_picture(second.url, by_first)
        assert upload(second.url, harmless).status == 201 and len(first.cases()) == 2
        first.decide("confirm", ids[by_second])
        assert upload(second.url, harmful).status == 400
        assert upload(first.url, harmful).status == 400
        third = hits.pop()
        alias = promised(second.url, third)
        entry = upload(first.url, hits.pop()).json()["files"][0]
        deleted = get(second.url, f"/image/delete/{entry['delete_token']}/{entry['file']}")
        assert deleted.status == 204
        assert get(first.url, f"/image/original/{entry['file']}").status == 404
        assert shows_a_placeholder(first.url, alias)
        assert first.ledger()
    finally:
        second.program.kill()


def test_a_postgresql_that_restarts_in_the_middle_loses_no_promise(
    new_gate: NewGate, postgresql: Postgresql, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    gate = new_gate(database_url=postgresql.new_database())
    aliases: dict[str, bool] = {}
    statuses: list[int] = []
    ending = threading.Event()
    harmful, harmless = [hits.pop() for _ in range(12)], pictures.png((64, 64), seed=7000)

    def send(number: int) -> None:
        for content in itertools.chain(harmful[number::3], itertools.repeat(harmless)):
            if ending.is_set():
                return
            answer = upload(gate.url, content)
            statuses.append(answer.status)
            if answer.status == 201:
                aliases[answer.json()["files"][0]["file"]] = content in harmful
            time.sleep(0.1)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def wait_for(status: int) -> None:
        before, end = len(statuses), time.monotonic() + 60
        while status not in statuses[before:]:
            assert time.monotonic() < end and gate.program is not None
            assert gate.program.process.poll() is None
            time.sleep(0.02)

    try:
        for _ in range(2):
            wait_for(201)
            postgresql.stop(at_once=True)
            wait_for(503)
            assert get(gate.url, "/image/original/some.png").status == 503
            assert get(gate.internal_url, "/readyz").status == 503
            postgresql.start()
        wait_for(201)  # by itself
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {201, 503}
    cases = {case["alias"]: case for case in gate.cases()}
    for alias, is_held in aliases.items():
        assert shows_a_placeholder(gate.url, alias) == is_held
        if is_held:
            assert (gate.folder / "cases" / f"{cases[alias]['id']}.age").exists()
    for alias in cases:
        assert get(running_pictrs.url, f"/image/original/{alias}").status == 404
    assert gate.ledger()
    gate.decide("release", gate.cases()[0]["id"])
    assert gate.stop() == 0
