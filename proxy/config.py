"""The configuration: one TOML file, every key also as an environment variable, errors that help.

A key `pictrs.url` is `GATE__PICTRS__URL` in the environment, as in pict-rs's own manner; the environment
wins. Relative paths are relative to the folder of the configuration file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from sqlalchemy import URL, make_url

from proxy.errors import ConfigError
from proxy.sections import (
    SECRET,
    BackfillSection,
    CasesSection,
    ClassifierSection,
    DatabaseSection,
    FetchingSection,
    InternalSection,
    LedgerSection,
    LockdownSection,
    PictrsSection,
    PolicySection,
    RetentionSection,
    Section,
    ServerSection,
)

_PREFIX = "GATE__"
_SECRETS = frozenset({"api_key", "token", "password", "s3_secret_key"})
_Section = TypeVar("_Section", bound=Section)


class Config(BaseSettings):
    """The whole configuration, valid and complete: paths absolute, secrets read."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    server: ServerSection = ServerSection()
    internal: InternalSection = InternalSection()
    pictrs: PictrsSection
    classifiers: list[ClassifierSection] = Field(min_length=1)
    policy: PolicySection = PolicySection()
    fetching: FetchingSection = FetchingSection()
    cases: CasesSection
    lockdown: LockdownSection = LockdownSection()
    retention: RetentionSection = RetentionSection()
    database: DatabaseSection = DatabaseSection()
    ledger: LedgerSection = LedgerSection()
    backfill: BackfillSection = BackfillSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file, and nothing else."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _placeholder_needs_key(self) -> Self:
        key_is_set = self.pictrs.api_key or self.pictrs.api_key_file
        if self.policy.hold_response == "placeholder" and not key_is_set:
            raise ValueError(
                "policy.hold_response: 'placeholder' needs pictrs.api_key or pictrs.api_key_file, because a "
                'release goes through pict-rs\'s import; set the key, or hold_response = "reject"'
            )
        return self

    @model_validator(mode="after")
    def _allowing_unseen_needs_key(self) -> Self:
        key_is_set = self.pictrs.api_key or self.pictrs.api_key_file
        if self.policy.on_unavailable == "allow" and not key_is_set:
            raise ValueError(
                "policy.on_unavailable: 'allow' needs pictrs.api_key or pictrs.api_key_file, because what "
                "turns out a hit later is taken away from pict-rs; set the key, or on_unavailable = 'defer'"
            )
        return self

    @model_validator(mode="after")
    def _validation_needs_the_hook(self) -> Self:
        for key in ("downloads", "proxied"):
            if getattr(self.fetching, key) != "validate":
                continue
            if not self.fetching.hook_is_set:
                raise ValueError(
                    f"fetching.{key}: 'validate' leaves the fetching to pict-rs, so its "
                    "media.external_validation has to call this gate; set it, and say so here with "
                    "fetching.hook_is_set = true"
                )
            if not (self.pictrs.api_key or self.pictrs.api_key_file):
                raise ValueError(
                    f"fetching.{key}: 'validate' needs pictrs.api_key, to delete what came without a call"
                )
        return self

    @model_validator(mode="after")
    def _memory_holds_an_upload(self) -> Self:
        largest = self.pictrs.max_file_count * self.pictrs.max_file_size_mb
        if largest + self.pictrs.max_file_count // 64 > self.server.memory_mb * 5 // 8:
            raise ValueError(
                f"server.memory_mb: {self.server.memory_mb}: five eighths of it must be no less than "
                f"one request may be, {largest} MB (pictrs.max_file_count times pictrs.max_file_size_mb)"
            )
        return self

    @model_validator(mode="after")
    def _workers_poll_one_channel(self) -> Self:
        if sum(section.kind == "fedi-safety" for section in self.classifiers) > 1:
            raise ValueError("classifiers: kind fedi-safety may stand there once; all its workers share it")
        return self

    @property
    def placeholders(self) -> bool:
        """Whether a held upload is answered with a placeholder rather than with an error."""
        if self.policy.hold_response is None:
            return self.pictrs.api_key is not None
        return self.policy.hold_response == "placeholder"


def load(path: Path) -> Config:
    """Reads the configuration at `path`, and every secret that it names a file for.

    Raises:
        ConfigError: a line for each thing that is wrong: the key, the value, what is allowed.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; write one as docs/configuration.md shows") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    _refuse_unknown_variables()
    try:
        config = Config(**data)
    except ValidationError as error:
        lines = [f"{path}: {_explain(dict(problem))}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    except SettingsError:
        names = ", ".join(_variables_not_json())
        raise ConfigError(f"environment: {names}: must be JSON, as lists and tables are there") from None
    return _complete(config, path.resolve().parent)


def _refuse_unknown_variables() -> None:
    for name in os.environ:
        section = name.removeprefix(_PREFIX).partition("__")[0].lower()
        if name.startswith(_PREFIX) and section not in Config.model_fields:
            raise ConfigError(f"environment: {name}: unknown key; allowed: {', '.join(Config.model_fields)}")


def _variables_not_json() -> list[str]:
    """The variables that pydantic-settings cannot read; its own error names only the section."""
    source = EnvSettingsSource(Config)
    found = []
    for name, value in os.environ.items():
        source.env_vars = {name.lower(): value}
        try:
            source()
        except SettingsError:
            found.append(name)
    return sorted(found)


def _explain(problem: Mapping[str, Any]) -> str:
    """One of pydantic's errors as: key, value, what is allowed."""
    where = [str(step) for step in problem["loc"]]
    key = ".".join(where) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _keys_at(where[:-1])
        close = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not where:  # a rule between several keys says itself which
        return str(message)
    return f"{key}: {_shown(where, problem['input'])}: {message[:1].lower() + message[1:]}"


def _shown(where: list[str], value: object) -> str:
    """A value as an error may show it: no secret, nor anything that may hold one."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = repr(value)
    if _SECRETS & set(where) or "AGE-SECRET-KEY" in text.upper():
        return "(secret)"
    # Of a URL with a password, wherever it stands in it.
    return re.sub(r"\?.*", "?…", re.sub(r"//.*@", "//…@", text))[:100]


def _keys_at(where: list[str]) -> list[str]:
    model: Any = Config
    for step in where:
        if step.isdigit():
            continue
        model = model.model_fields[step].annotation
        model = next((arg for arg in getattr(model, "__args__", ()) if hasattr(arg, "model_fields")), model)
    return list(getattr(model, "model_fields", {}))


def _complete(config: Config, folder: Path) -> Config:
    pictrs = _with_secret(config.pictrs, folder, "pictrs", "api_key")
    classifiers = [
        _with_certificates(_with_secret(section, folder, f"classifiers.{index}", "token"), folder)
        for index, section in enumerate(config.classifiers)
    ]
    cases = config.cases
    cases = cases.model_copy(
        update={
            "folder": folder / cases.folder,
            "identity_file": cases.identity_file and folder / cases.identity_file,
            "gate_identity_file": folder / cases.gate_identity_file,
        }
    )
    policy = config.policy.model_copy(
        update={"block_lists": [folder / path for path in config.policy.block_lists]}
    )
    backfill = _with_secret(config.backfill, folder, "backfill", "s3_secret_key")
    backfill = backfill.model_copy(
        update={
            key: getattr(backfill, key) and folder / getattr(backfill, key)
            for key in ("sftp_key_file", "sftp_known_hosts")
        }
    )
    database = _with_secret(config.database, folder, "database", "password")
    if database.url.startswith("sqlite:"):
        # Made of its parts, because the folder's name may hold what a URL has to quote.
        url = URL.create("sqlite", database=str(folder / str(make_url(database.url).database)))
        database = database.model_copy(update={"url": url.render_as_string()})
    return config.model_copy(
        update={
            "pictrs": pictrs,
            "classifiers": classifiers,
            "cases": cases,
            "policy": policy,
            "database": database,
            "ledger": _beside_the_database(config.ledger, folder, database),
            "backfill": backfill,
        }
    )


def _beside_the_database(section: LedgerSection, folder: Path, database: DatabaseSection) -> LedgerSection:
    """The section with whole paths: what the file does not name is where the gate writes anyway."""
    url = make_url(database.url)
    usual = Path(url.database).parent if url.database and url.drivername.startswith("sqlite") else folder
    files = {
        key: (folder if key in section.model_fields_set else usual) / getattr(section, key)
        for key in ("key_file", "checkpoints_file")
    }
    return section.model_copy(update=files)


def _with_secret(section: _Section, folder: Path, key: str, name: str) -> _Section:
    """`section` with the secret `name` read from its `{name}_file`."""
    given, file = getattr(section, name), getattr(section, f"{name}_file")
    if file is None:
        return section
    if given is not None:
        raise ConfigError(f"{key}.{name} and {key}.{name}_file are both set; keep one")
    secret = read_secret(folder / file, f"{key}.{name}_file")
    return section.model_copy(update={name: SecretStr(secret)})


def _with_certificates(section: ClassifierSection, folder: Path) -> ClassifierSection:
    files = {key: getattr(section, key) for key in ("ca_file", "certificate_file", "key_file")}
    return section.model_copy(update={key: file and folder / file for key, file in files.items()})


def read_secret(path: Path, key: str) -> str:
    """The one line in the file that the setting `key` names.

    Raises:
        ConfigError: the file is not there, not readable or holds anything else. The message never quotes it.
    """
    try:
        secret = path.read_text("ascii").strip()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror}; create the file or mend the path") from None
    except UnicodeDecodeError:
        secret = ""
    if not SECRET.fullmatch(secret):
        raise ConfigError(
            f"{key}: {path}: must hold the secret, one line of printable ASCII without spaces, nothing else"
        )
    return secret
