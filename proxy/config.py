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
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pyrage
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
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
from sqlalchemy.exc import ArgumentError

from proxy.errors import ConfigError
from proxy.pdq import MOST_NEAR, SAME_PICTURE

_PREFIX = "GATE__"
_SECRETS = frozenset({"api_key", "token", "password", "s3_secret_key"})
_SECRET = re.compile(r"[!-~]+")  # what an HTTP header carries unchanged
# Of libpq's: where its socket is, and how far TLS goes.
_POSTGRESQL_OPTIONS = frozenset({"host", "sslcert", "sslkey", "sslmode", "sslrootcert"})
_LISTEN = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>\d{1,5})")


def host_and_port(listen: str) -> tuple[str, int]:
    """The two halves of `host:port`; an IPv6 host stands in brackets. Port 0 is any free one.

    Raises:
        ValueError: it is not that.
    """
    match = _LISTEN.fullmatch(listen)
    if match is None or int(match["port"]) > 65535:
        raise ValueError("must be host:port, for example 127.0.0.1:8080 or [::1]:8080")
    return match["v6"] or match["host"], int(match["port"])


def _listen(value: str) -> str:
    host_and_port(value)
    return value


def _http_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", value):
        raise ValueError("must be http://host[:port] or https://…, without user, query or fragment")
    return value.rstrip("/")


def _recipient(value: str) -> str:
    try:
        pyrage.x25519.Recipient.from_str(value)
    except pyrage.RecipientError:
        raise ValueError("must be a public key of age, age1…; `pictrs-gate keys new` makes one") from None
    return value


def _database_url(value: str) -> str:
    if re.match(r"postgres(ql)?(\+\w+)?:", value):
        return _postgresql_url(value)
    file = make_url(value).database if re.fullmatch(r"sqlite:///[^?]+", value) else None
    if not file or file == ":memory:" or not file.isprintable():
        raise ValueError(
            "must be sqlite:///FILE, without host or options, or postgresql://USER@HOST/DATABASE"
        )
    return value


def _postgresql_url(value: str) -> str:
    """One that has no secret in any part, so that it may be shown."""
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        url = None
    if url is None or not url.database or not value.isprintable():
        raise ValueError("must be postgresql://USER@HOST[:PORT]/DATABASE")
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ValueError("must begin with postgresql://")
    if url.password is not None:
        raise ValueError("must have no password; put it into a file, and name that in database.password_file")
    if unknown := set(url.query) - _POSTGRESQL_OPTIONS:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: unknown option; allowed: {', '.join(sorted(_POSTGRESQL_OPTIONS))}"
        )
    return value.replace("postgresql+psycopg:", "postgresql:", 1)


def _secret(value: SecretStr) -> SecretStr:
    if not _SECRET.fullmatch(value.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces, and not empty")
    return value


# pictrs-safety's ids; "IPADDR" stands there for the caller's address.
ScanId = Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")]
Listen = Annotated[str, AfterValidator(_listen)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Recipient = Annotated[str, AfterValidator(_recipient)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Section = TypeVar("_Section", bound=Section)


class ServerSection(Section):
    """pict-rs's API: Lemmy's `pictrs.url` points here."""

    listen: Listen = "127.0.0.1:8080"
    # Lemmy gives an upload 30 s by default; the gate has answered before.
    upload_s: Seconds = 28.0
    memory_mb: int = Field(default=256, ge=16, le=65536)
    connections: int = Field(default=512, ge=8, le=65536)
    trusted_proxies: list[IPvAnyNetwork] = [IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")]
    uploader_facts: bool = True


class InternalSection(Section):
    """pict-rs's validation hook, workers that poll, metrics and health."""

    listen: Listen = "127.0.0.1:14051"
    scan_ids: list[ScanId] = []
    scan_networks: list[IPvAnyNetwork] = []


class PictrsSection(Section):
    """The real pict-rs. The last two keys repeat settings of its own."""

    url: HttpUrl
    api_key: Secret | None = None
    api_key_file: Path | None = None
    max_file_count: int = Field(default=1, ge=1, le=100)
    max_file_size_mb: int = Field(default=40, ge=1, le=1024)
    timeout_s: Seconds = 30.0


class FetchingSection(Section):
    """Pictures of other sites, which `download?url=` and `proxy=` name."""

    downloads: Literal["fetch", "validate", "refuse"] = "fetch"
    proxied: Literal["validate", "refuse"] = "refuse"
    hook_is_set: bool = False
    also_reach: list[IPvAnyNetwork] = []
    any_port: bool = False


class ClassifierSection(Section):
    """A classifier that the gate calls by HTTP, or those that come by themselves: they dial in, or poll."""

    kind: Literal["http", "worker", "fedi-safety"] = "http"
    url: HttpUrl | None = None
    token: Secret | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        if self.kind == "http" and self.url is None:
            raise ValueError('url is missing; or set kind = "worker" for one that dials in')
        if self.kind == "fedi-safety" and (self.url is not None or not (self.token or self.token_file)):
            raise ValueError("kind fedi-safety has no url; its token or token_file is the workers' apikey")
        if self.kind == "worker" and (self.url is not None or not (self.token or self.token_file)):
            raise ValueError("kind worker has no url; token or token_file is what it has to bear")
        return self

    @model_validator(mode="after")
    def _certificates_are_for_https(self) -> Self:
        if self.url is None or not self.url.startswith("https:"):
            for key in ("ca_file", "certificate_file", "key_file"):
                if (file := getattr(self, key)) is not None:
                    raise ValueError(
                        f"{key} is {str(file)!r}, which only an https url has a use for; "
                        "begin url with https:// or leave the key out"
                    )
        for key, other in (("certificate_file", "key_file"), ("key_file", "certificate_file")):
            if (file := getattr(self, key)) is not None and getattr(self, other) is None:
                raise ValueError(f"{key} is {str(file)!r}, and {other} is missing; set both or neither")
        return self


class RuleSection(Section):
    """One rule of the policy: all its thresholds reached, and its verdict is given."""

    name: str = Field(min_length=1)
    verdict: Literal["allow", "hold", "block"] = "hold"
    at_least: dict[str, Fraction] = Field(min_length=1)


class PolicySection(Section):
    """Signals to verdicts."""

    on_unavailable: Literal["defer", "hold", "block", "allow"] = "defer"
    on_undecodable: Literal["hold", "block", "allow"] = "hold"
    hold_response: Literal["placeholder", "reject"] | None = None
    verdict_s: Seconds = 10.0
    block_lists: list[Path] = []
    near_distance: int = Field(default=SAME_PICTURE, ge=0, le=MOST_NEAR)
    near_verdict: Literal["hold", "block"] = "hold"
    rules: list[RuleSection] = []


class CasesSection(Section):
    """Where held files lie, and who can read them."""

    folder: Path
    recipients: list[Recipient] = Field(min_length=1)
    identity_file: Path | None = None
    gate_identity_file: Path = Path("gate.key")

    quota_gb: float = Field(default=10.0, gt=0, le=1_000_000, allow_inf_nan=False)
    share_of_uploader: float = Field(default=0.25, gt=0, le=1, allow_inf_nan=False)
    keep_free_mb: int = Field(default=512, ge=0, le=1_000_000)


class LockdownSection(Section):
    """Whose uploads are looked at as ever while all others are held: Lemmy's local user ids."""

    allow_users: list[Annotated[int, Field(ge=1)]] = []


class RetentionSection(Section):
    """When the bytes of a case are deleted. 0 is never."""

    enabled: bool = False
    released_days: int = Field(default=7, ge=0, le=36_500)
    confirmed_days: int = Field(default=365, ge=0, le=36_500)


class BackfillSection(Section):
    """What is stored already."""

    memory_mb: int = Field(default=64, ge=1, le=65536)
    s3_endpoint: HttpUrl | None = None
    s3_region: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: Secret | None = None
    s3_secret_key_file: Path | None = None
    sftp_key_file: Path | None = None
    sftp_known_hosts: Path | None = None


class DatabaseSection(Section):
    """Where states, hashes and the ledger are."""

    url: DatabaseUrl = "sqlite:///gate.db"
    password: Secret | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _password_is_for_postgresql(self) -> Self:
        if self.url.startswith("sqlite:") and (self.password or self.password_file):
            raise ValueError("password and password_file are for PostgreSQL; SQLite has none, leave them out")
        return self


class LedgerSection(Section):
    """Signed checkpoints, and for how long plain allows are kept. The files are beside the database."""

    keep_allows_days: int = Field(default=30, ge=0, le=3650)
    key_file: Path = Path("ledger.key")
    checkpoints_file: Path = Path("ledger-checkpoints.jsonl")


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
    if not _SECRET.fullmatch(secret):
        raise ConfigError(
            f"{key}: {path}: must hold the secret, one line of printable ASCII without spaces, nothing else"
        )
    return secret
