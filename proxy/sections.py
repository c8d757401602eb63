"""The tables of the configuration file: what each key may be. `proxy.config` reads the file."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

import pyrage
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from proxy.pdq import MOST_NEAR, SAME_PICTURE

SECRET = re.compile(r"[!-~]+")  # what an HTTP header carries unchanged
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
    if not SECRET.fullmatch(value.get_secret_value()):
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
