"""The configuration: what is meant is taken, what is not is named with key, value and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.cases.sealing import write_new_identity
from proxy.config import Config, load
from proxy.database import Database
from proxy.errors import ConfigError

FIRST = """
[server]
listen = "127.0.0.1:8080"
[internal]
listen = "127.0.0.1:14051"
[pictrs]
url = "http://127.0.0.1:8081"
api_key_file = "pictrs-api-key"
[[classifiers]]
url = "http://gpu-box:14052"
token_file = "classifier-token"
[policy]
on_unavailable = "defer"
on_undecodable = "hold"
hold_response = "placeholder"
[[policy.rules]]
name = "sexual content with an apparent minor"
verdict = "hold"
at_least = { sexual = 0.50, minor = 0.35 }
[cases]
folder = "cases"
recipients = ["RECIPIENT"]
identity_file = "reviewer.key"
[database]
url = "sqlite:///gate.db"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictrs-api-key").write_text("the-api-key\n")
    (tmp_path / "classifier-token").write_text("the-token\n")
    return tmp_path


@pytest.fixture
def text(folder: Path) -> str:
    return FIRST.replace("RECIPIENT", write_new_identity(folder / "reviewer.key"))


def loaded(folder: Path, text: str) -> Config:
    path = folder / "gate.toml"
    path.write_text(text)
    return load(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        loaded(folder, text)
    return str(error.value)


def test_the_first_configuration_means_what_the_design_says(folder: Path, text: str) -> None:
    config = loaded(folder, text)
    assert config.pictrs.api_key is not None and config.pictrs.api_key.get_secret_value() == "the-api-key"
    (classifier,) = config.classifiers
    assert classifier.token is not None and classifier.token.get_secret_value() == "the-token"
    assert config.placeholders
    assert config.cases.folder == folder / "cases"
    assert config.cases.identity_file == folder / "reviewer.key"
    assert config.database.url == f"sqlite:///{folder}/gate.db"
    (rule,) = config.policy.rules
    assert (rule.verdict, rule.at_least) == ("hold", {"sexual": 0.5, "minor": 0.35})
    assert (config.policy.verdict_s, config.server.upload_s) == (10, 28)


def test_the_environment_goes_before_the_file(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE__PICTRS__URL", "http://elsewhere:1")
    monkeypatch.setenv("GATE__SERVER__LISTEN", "[::1]:80")
    monkeypatch.setenv("GATE__CLASSIFIERS", '[{"url": "http://other:2"}]')
    monkeypatch.setenv("GATE__POLICY__ON_UNAVAILABLE", "block")
    config = loaded(folder, text)
    assert config.pictrs.url == "http://elsewhere:1"
    assert config.server.listen == "[::1]:80"
    assert [classifier.url for classifier in config.classifiers] == ["http://other:2"]
    assert (config.policy.on_unavailable, config.policy.on_undecodable) == ("block", "hold")


def test_without_an_api_key_held_uploads_are_rejected(folder: Path, text: str) -> None:
    without = text.replace('api_key_file = "pictrs-api-key"\n', "").replace(
        'hold_response = "placeholder"\n', ""
    )
    assert not loaded(folder, without).placeholders


@pytest.mark.parametrize(
    ("change", "into", "named"),
    [
        ('listen = "127.0.0.1:8080"', "listen = 8080", ["server.listen", "8080"]),
        ('listen = "127.0.0.1:8080"', 'listen = "8080"', ["server.listen", "'8080'", "host:port"]),
        ('listen = "127.0.0.1:8080"', 'listen = "h:99999"', ["server.listen", "'h:99999'"]),
        ('"http://127.0.0.1:8081"', '"127.0.0.1:8081"', ["pictrs.url", "http://host"]),
        ('"http://127.0.0.1:8081"', '"http://u:p@h"', ["pictrs.url", "without user"]),
        ('"defer"', '"drop"', ["policy.on_unavailable", "'drop'", "'defer'", "'hold'", "'block'", "'allow'"]),
        (
            *('on_unavailable = "defer"', 'on_unavailable = "defer"\nnear_distance = 64'),
            ["policy.near_distance", "64", "less than or equal to 63"],
        ),
        (
            *('on_unavailable = "defer"', 'on_unavailable = "defer"\nnear_verdict = "allow"'),
            ["policy.near_verdict", "'allow'", "'hold'", "'block'"],
        ),
        ('"hold"\n', '"delete"\n', ["policy.on_undecodable", "'delete'"]),
        ("sexual = 0.50", "sexual = 50", ["policy.rules.0.at_least.sexual", "50", "less than or equal to 1"]),
        ("sexual = 0.50, minor = 0.35", "", ["policy.rules.0.at_least"]),
        (
            "on_unavailable",
            "on_unavailble",
            ["policy.on_unavailble", "unknown", "did you mean on_unavailable"],
        ),
        ("[database]", "[databases]", ["databases", "unknown", "did you mean database"]),
        ('folder = "cases"\n', "", ["cases.folder", "missing"]),
        ('url = "http://127.0.0.1:8081"\n', "", ["pictrs.url", "missing"]),
        ('"sqlite:///gate.db"', '"mysql://x"', ["database.url", "mysql", "sqlite:///"]),
        ("age1", "age2", ["cases.recipients.0", "keys new"]),
        ('api_key_file = "pictrs-api-key"', "", ["hold_response", "placeholder", "api_key"]),
        (
            'api_key_file = "pictrs-api-key"',
            'api_key_file = "nowhere"',
            ["pictrs.api_key_file", "nowhere", "No such"],
        ),
        (
            'api_key_file = "pictrs-api-key"',
            'api_key_file = "pictrs-api-key"\napi_key = "x"',
            ["pictrs.api_key", "both"],
        ),
        ("[pictrs]", "[pictrs", ["not TOML"]),
        ('"sqlite:///gate.db"', '"sqlite://"', ["database.url", "must be sqlite:///FILE"]),
        ('"sqlite:///gate.db"', '"sqlite:///"', ["database.url", "must be sqlite:///FILE"]),
        ('"sqlite:///gate.db"', '"sqlite:///:memory:"', ["database.url", "must be sqlite:///FILE"]),
        ('"sqlite:///gate.db"', '"sqlite://host/gate.db"', ["database.url", "must be sqlite:///FILE"]),
        ('"sqlite:///gate.db"', '"sqlite:///gate.db?mode=ro"', ["database.url", "without host or options"]),
        ('"sqlite:///gate.db"', '"postgresql://u@h"', ["database.url", "USER@HOST[:PORT]/DATABASE"]),
        ('"sqlite:///gate.db"', '"postgresql://u@h:x/gate"', ["database.url", "USER@HOST[:PORT]/DATABASE"]),
        ('"sqlite:///gate.db"', '"postgres://u@h/gate"', ["database.url", "must begin with postgresql://"]),
        ('"sqlite:///gate.db"', '"postgresql+asyncpg://u@h/d"', ["must begin with postgresql://"]),
        ('"sqlite:///gate.db"', '"postgresql://u@h/d?x=1"', ["database.url", "x: unknown option", "sslmode"]),
        ('"sqlite:///gate.db"', '"sqlite:///gate.db"\npassword = "x"', ["database: ", "for PostgreSQL"]),
        (
            '"sqlite:///gate.db"',
            '"postgresql://u@h/d"\npassword = "x"\npassword_file = "y"',
            ["database.password", "both"],
        ),
        (
            '"sqlite:///gate.db"',
            '"sqlite+pysqlcipher:///gate.db"',
            ["database.url", "must be sqlite:///FILE"],
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_allowed(
    folder: Path, text: str, change: str, into: str, named: list[str]
) -> None:
    assert change in text
    message = refused(folder, text.replace(change, into))
    for word in named:
        assert word in message, message


def test_everything_that_is_wrong_is_said_at_once(folder: Path, text: str) -> None:
    message = refused(folder, text.replace('"defer"', '"drop"').replace("[database]", "[databases]"))
    assert len(message.splitlines()) == 2


def test_a_variable_that_is_no_setting_is_an_error(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE__SERVERS__LISTEN", "127.0.0.1:1")
    assert "GATE__SERVERS__LISTEN" in refused(folder, text)
    monkeypatch.delenv("GATE__SERVERS__LISTEN")
    monkeypatch.setenv("GATE__SERVER__LISTN", "127.0.0.1:1")
    assert "server.listn" in refused(folder, text)
    monkeypatch.delenv("GATE__SERVER__LISTN")


@pytest.mark.parametrize("name", ["GATE__CLASSIFIERS", "GATE__POLICY__RULES", "GATE__CASES__RECIPIENTS"])
def test_a_variable_that_is_not_json_is_named(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GATE__POLICY__ON_UNAVAILABLE", "block")
    monkeypatch.setenv(name, "[hush")
    message = refused(folder, text)
    assert message == f"environment: {name}: must be JSON, as lists and tables are there"


def test_no_error_shows_a_secret(folder: Path, text: str) -> None:
    wrong = text.replace('api_key_file = "pictrs-api-key"', "api_key = { a = 'hush-hush' }")
    assert "hush" not in refused(folder, wrong)
    (folder / "pictrs-api-key").write_text("hush-hush\nhush-hush\n")
    assert "hush" not in refused(folder, text)


@pytest.mark.parametrize(
    ("change", "into", "named"),
    [
        # The whole table or list is then pydantic's input, with every secret in it.
        ("[[classifiers]]", "[classifiers]\ntoken = 'hush'", "classifiers: a table"),
        ("[pictrs]", "[[pictrs]]\napi_key = 'hush'", "pictrs: a list"),
        ("[[classifiers]]", "[[classifiers]]\nurl = 'http://x'\n[classifiers.token]\nx = 'hush'\n#", "token"),
        ('"http://127.0.0.1:8081"', '"http://user:hush@h"', "//…@h"),
        ('"sqlite:///gate.db"', '"postgresql://gate:hush@h/gate"', "//…@h"),
        ('"sqlite:///gate.db"', '"postgresql://gate:hu/sh hush@h/gate"', "//…@h"),
        ('"sqlite:///gate.db"', '"postgresql://gate@h/gate?password=hush"', "//…@h/gate?…"),
        ('"sqlite:///gate.db"', '"postgresql://gate@h/gate"\npassword = "hush hush"', "password: (secret)"),
        ('recipients = ["', 'recipients = ["AGE-SECRET-KEY-1HUSH", "', "cases.recipients.0: (secret)"),
    ],
)
def test_no_error_shows_what_may_hold_a_secret(
    folder: Path, text: str, change: str, into: str, named: str
) -> None:
    assert change in text
    message = refused(folder, text.replace(change, into, 1))
    assert named in message and "hush" not in message.lower()


@pytest.mark.parametrize("secret", ["", "two words", "tab\tulated", "line\nbreak", "schlüssel", "nul\0"])
def test_a_secret_is_checked_wherever_it_stands(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    inline = text.replace('token_file = "classifier-token"', f"token = {json.dumps(secret)}")
    assert "classifiers.0.token: (secret): must be printable ASCII" in refused(folder, inline)
    (folder / "classifier-token").write_text(secret, "utf-8")
    assert "classifiers.0.token_file" in refused(folder, text)
    if "\0" not in secret:
        monkeypatch.setenv("GATE__PICTRS__API_KEY", secret)
        assert "pictrs.api_key: (secret): must be printable ASCII" in refused(folder, text)


def test_a_file_that_is_not_utf_8_is_said_in_one_line(folder: Path, text: str) -> None:
    (folder / "gate.toml").write_bytes(text.encode().replace(b"sexual content", b"se\xfcual content"))
    with pytest.raises(ConfigError, match=r"gate\.toml: not UTF-8 \(byte \d+\)"):
        load(folder / "gate.toml")
    (folder / "classifier-token").write_bytes(b"schl\xfcssel")
    message = refused(folder, text)
    assert "classifiers.0.token_file" in message and len(message.splitlines()) == 1


def test_a_folder_may_have_any_name(tmp_path: Path, folder: Path, text: str) -> None:
    odd = tmp_path / "what? 100%20 #1"
    odd.mkdir()
    for name in ("pictrs-api-key", "classifier-token"):
        (folder / name).rename(odd / name)
    Database(loaded(odd, text).database.url).close()
    assert (odd / "gate.db").exists()


def test_a_postgresql_is_named_without_its_password(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "password").write_text("hush\n")
    url = "postgresql://gate@db.example.org:5433/gate?sslmode=verify-full"
    named = text.replace('"sqlite:///gate.db"', f'"{url}"')
    database = loaded(folder, named + 'password_file = "password"\n').database
    assert database.url == url
    assert database.password is not None and database.password.get_secret_value() == "hush"
    assert "hush" not in repr(database)
    monkeypatch.setenv("GATE__DATABASE__PASSWORD", "other")
    monkeypatch.setenv("GATE__DATABASE__URL", "postgresql+psycopg:///gate?host=/run/postgresql")
    database = loaded(folder, text).database
    assert database.url == "postgresql:///gate?host=/run/postgresql"
    assert database.password is not None and database.password.get_secret_value() == "other"


def test_a_file_that_is_not_there_says_where_to_look() -> None:
    with pytest.raises(ConfigError, match=r"docs/configuration\.md"):
        load(Path("/nowhere/gate.toml"))
