"""The tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from proxy.cases.life import CaseState


class UtcDateTime(TypeDecorator[datetime]):
    """Moments in UTC, also in a database that keeps no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database: UTC."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database: SQLite has dropped the time zone, PostgreSQL may have another."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The root of the models."""

    type_annotation_map = {  # noqa: RUF012 — SQLAlchemy's own way to say it
        dict[str, Any]: JSON,
        list[Any]: JSON,
        bytes: LargeBinary(255),
        datetime: UtcDateTime,
        CaseState: Enum(
            CaseState, native_enum=False, length=16, values_callable=lambda e: [m.value for m in e]
        ),
    }


class Case(Base):
    """One held or deferred upload. What only a reviewer needs is sealed in its file, not here.

    Attributes:
        reason: why it is a case, in words; `rule` names the policy's rule where one decided.
        file: of the sealed bytes, relative to the quarantine's folder.
        pdq, pdq_quality: perceptual hash of what was uploaded, 64 hexadecimal digits and 0..100; None where
            nobody could look.
        earlier: the earlier decision that its file or one that looks like it had met, for the reviewer; None
            where there was none.
        uploader: a tag of who sent it, by which a share of the quarantine is counted; says nothing by itself.
        sealed_size: bytes of the sealed file; None where they were not counted yet, or are deleted.
        decided_at, decided_by: of the last step of a release, or of the confirmation.
        reported_at, reported_by, reported_as: of the report, and the authority's reference.
        hold_at, hold_by, hold_reason: of the legal hold that is on it; None where none is.
        expired_at: when its bytes were deleted; None where it is expired and they are still to be deleted.
        sealed_to: for whom its file is sealed (`proxy.cases.recipients.digest`); None where nobody noted it.
        gate_reads: whether its sealed file is also for the gate's own key, as that of a deferred case is
            until somebody has looked.
        stored_as: SHA-256 of what pict-rs has made of it, as far as it was asked; None where it was not.
        overtaken_at: since when pict-rs may have nothing of it although a release may bring it there: when
            it was confirmed, or another case of the same file; None where nothing can come any more.
        leased_until, leased_by: until when which gate has a deferred case to itself; None where none has.
        again_at, tries: when a deferred case is to be looked at again, and how often that was in vain.
        promises: the aliases that were promised for it, in their order.
    """

    __tablename__ = "cases"
    __table_args__ = (  # the first pages of lists, newest first
        Index("ix_cases_newest", "created_at", "id"),
        Index("ix_cases_state_newest", "state", "created_at", "id"),
        Index("ix_cases_rule_newest", "rule", "created_at", "id"),
        Index(
            "ix_cases_held",
            "created_at",
            "id",
            sqlite_where=text("hold_at IS NOT NULL"),
            postgresql_where=text("hold_at IS NOT NULL"),
        ),
        # The sums by uploader are read from this index alone.
        Index("ix_cases_uploader_sealed_size", "uploader", "sealed_size"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[CaseState] = mapped_column(index=True)
    created_at: Mapped[datetime]
    reason: Mapped[str] = mapped_column(String(500))
    rule: Mapped[str | None] = mapped_column(String(200))
    file: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    size: Mapped[int | None]
    content_type: Mapped[str | None] = mapped_column(String(100))
    pdq: Mapped[str | None] = mapped_column(String(64))
    pdq_quality: Mapped[int | None]
    signals: Mapped[dict[str, Any] | None]
    ensemble: Mapped[str | None] = mapped_column(String(200))
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None] = mapped_column(String(200))
    earlier: Mapped[dict[str, Any] | None]
    uploader: Mapped[str | None] = mapped_column(String(64), index=True)
    sealed_size: Mapped[int | None]
    reported_at: Mapped[datetime | None]
    reported_by: Mapped[str | None] = mapped_column(String(200))
    reported_as: Mapped[str | None] = mapped_column(String(500))
    hold_at: Mapped[datetime | None]
    hold_by: Mapped[str | None] = mapped_column(String(200))
    hold_reason: Mapped[str | None] = mapped_column(String(500))
    expired_at: Mapped[datetime | None]
    sealed_to: Mapped[str | None] = mapped_column(String(64))
    gate_reads: Mapped[bool] = mapped_column(default=False, server_default=false(), index=True)
    leased_until: Mapped[datetime | None]
    leased_by: Mapped[str | None] = mapped_column(String(200))
    stored_as: Mapped[list[Any] | None]
    overtaken_at: Mapped[datetime | None]
    again_at: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(default=0, server_default="0")
    promises: Mapped[list[Promise]] = relationship(
        back_populates="case", lazy="selectin", order_by="Promise.number"
    )


class Promise(Base):
    """An alias that stands for a case until it is released: what an uploader was told in pict-rs's stead.

    Attributes:
        alias_key: `alias` as pict-rs compares it.
        delete_token, details: as the uploader was told them.
        arguments: the upload's own query, (key, value) pairs, for the import at the release.
        upload_id: under which a backgrounded upload can still be claimed; None otherwise.
        sent_at: when a release was last about to send it to pict-rs; None where none ever was.
        is_foreign: whether pict-rs has refused it as taken although no release had sent it there before: what
            it has under it is somebody else's picture, and not the gate's to delete.
        stored_at: when a release has stored it in pict-rs; None before.
        stored_token: pict-rs's own delete token, where the release was told it.
        removed_at: when somebody deleted the alias; None while it stands.
        token_lost: whether it was pict-rs's before it was a case's, so that nobody but its uploader knows its
            delete token; after a release pict-rs has another one.
    """

    __tablename__ = "promises"

    number: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), index=True)
    alias: Mapped[str] = mapped_column(String(255))
    alias_key: Mapped[bytes] = mapped_column(LargeBinary(1024), unique=True)
    delete_token: Mapped[str] = mapped_column(String(36))
    details: Mapped[dict[str, Any]]
    arguments: Mapped[list[Any]]
    upload_id: Mapped[str | None] = mapped_column(String(36), unique=True)
    sent_at: Mapped[datetime | None]
    is_foreign: Mapped[bool] = mapped_column(default=False, server_default=false())
    stored_at: Mapped[datetime | None]
    stored_token: Mapped[str | None] = mapped_column(String(36))
    removed_at: Mapped[datetime | None]
    token_lost: Mapped[bool] = mapped_column(default=False, server_default=false())
    case: Mapped[Case] = relationship(back_populates="promises", lazy="joined")

    @property
    def is_in_pictrs(self) -> bool:
        """Whether pict-rs shows the picture: it was released, and may have expired since."""
        if self.case.state is CaseState.EXPIRED:
            return self.stored_at is not None
        return self.case.state is CaseState.RELEASED


class KnownHash(Base):
    """A file that a human has decided about, by its exact bytes. `verdict` is `block` or `allow`."""

    __tablename__ = "known_hashes"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    verdict: Mapped[str] = mapped_column(String(8))
    case_id: Mapped[str | None] = mapped_column(String(32))
    added_at: Mapped[datetime]
    added_by: Mapped[str] = mapped_column(String(200))


class HashList(Base):
    """A list of hashes that the operator has imported.

    Attributes:
        verdict: on a file whose hash is on it, `block` or `hold`.
        removed_at: from when on it is as if it had never been; its hashes are deleted bit by bit.
    """

    __tablename__ = "hash_lists"
    # A number is never given twice: what is left of a removed list must not become part of another.
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 — SQLAlchemy's own way to say it

    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    verdict: Mapped[str] = mapped_column(String(8))
    added_at: Mapped[datetime]
    added_by: Mapped[str] = mapped_column(String(200))
    removed_at: Mapped[datetime | None]


class ListedHash(Base):
    """A file on a list, by its exact bytes. One table in the order of its key: a million take 50 MB."""

    __tablename__ = "listed_hashes"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    list_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class KnownPicture(Base):
    """A picture by its looks: of a case that was confirmed, or on a list.

    Attributes:
        number: grows with every commit, so whoever knows all up to one has only later ones to read.
        case_id, added_by: that was confirmed, and by whom; None for one of a list.
        list_number: of its list; None for that of a case.
    """

    __tablename__ = "known_pictures"
    __table_args__ = (
        Index("ix_known_pictures_list_number_pdq", "list_number", "pdq", unique=True),
        Index(
            "ix_known_pictures_case_id",
            "case_id",
            unique=True,
            sqlite_where=text("case_id IS NOT NULL"),
            postgresql_where=text("case_id IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(primary_key=True)
    pdq: Mapped[bytes] = mapped_column(LargeBinary(32))
    list_number: Mapped[int | None]
    case_id: Mapped[str | None] = mapped_column(String(32))
    added_by: Mapped[str | None] = mapped_column(String(200))


class UnseenUpload(Base):
    """An upload that was let pass although nobody could look, until somebody has.

    Attributes:
        alias, delete_token: pict-rs's own.
        sha256: of what was uploaded; what pict-rs has made of it has another one.
        facts: of the upload, sealed to the reviewers and the gate; empty once it is done with.
        case_id: the case that became of it.
        done_at: when there was nothing more to do: it was harmless, or gone, or its case has taken its place.
        leased_until, leased_by, again_at, tries: as of a case.
    """

    __tablename__ = "unseen_uploads"

    number: Mapped[int] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(String(255), index=True)
    delete_token: Mapped[str] = mapped_column(String(36))
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    facts: Mapped[bytes] = mapped_column(LargeBinary())
    case_id: Mapped[str | None] = mapped_column(ForeignKey("cases.id"), index=True)
    done_at: Mapped[datetime | None] = mapped_column(index=True)
    leased_until: Mapped[datetime | None]
    leased_by: Mapped[str | None] = mapped_column(String(200))
    again_at: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(default=0, server_default="0")


class Note(Base):
    """What a reviewer has written down about a case."""

    __tablename__ = "notes"

    number: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), index=True)
    at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(200))
    text: Mapped[str] = mapped_column(String(2000))


class Lockdown(Base):
    """A time in which every upload is held, whatever it is.

    Attributes:
        until: when it ends by itself; None where somebody has to end it.
        ended_at: None while it goes on, or until somebody has noticed that its time is over.
        ended_by: None where it has ended by itself.
    """

    __tablename__ = "lockdowns"

    number: Mapped[int] = mapped_column(primary_key=True)
    began_at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str | None] = mapped_column(String(500))
    until: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None] = mapped_column(String(200))


class Salt(Base):
    """32 random bytes that make a hash of this database's own."""

    __tablename__ = "salts"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[bytes]


class LedgerEntry(Base):
    """One link of the chain. `hash` covers every other column, `previous` the link before."""

    __tablename__ = "ledger"
    __table_args__ = (Index("ix_ledger_act", "act", "number"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(32))
    act: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(200))
    case_id: Mapped[str | None] = mapped_column(String(32), index=True)
    facts: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class SignedCheckpoint(Base):
    """What the ledger's last entry was at a moment; see `proxy.ledger.checkpoints.Checkpoint`."""

    __tablename__ = "checkpoints"

    checkpoint: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))
    time: Mapped[str] = mapped_column(String(32))
    previous: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))


class Ensemble(Base):
    """Name and version of what has looked, once for the many rows that name it."""

    __tablename__ = "ensembles"

    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)


class Allow(Base):
    """A file that was plainly allowed. Kept for some days, for statistics; no promise rests on it.

    Rows are in the order of time, nearly, and are read and deleted in the order of their numbers: an index
    more would cost every upload, and nobody asks for one file.

    Attributes:
        sha256: 32 bytes.
        signals: to four digits; None where a human's decision let the file pass, and nobody looked.
        ensemble: number of the `Ensemble` that looked, likewise.
    """

    __tablename__ = "allows"

    number: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    time: Mapped[datetime]
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    signals: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    ensemble: Mapped[int | None]


class BackfillRun(Base):
    """One run over what is stored, or one watch of what comes.

    Attributes:
        kind: `run` or `watch`.
        state: `open`, `finished`, or `left` for another run.
        source, options: as it was asked for; see `proxy.backfill.options`.
        cursor: where its source goes on, in the source's own words; None before the first page.
        newest: of a listing, where it began, see `proxy.backfill.watch`; a watch's own is its last round's.
        looked_at: files that somebody has looked at, or whose hash was known.
        reused: files of which an earlier look told enough.
        skipped: files that its options leave out.
        unreadable: files that nobody could look at, see `BackfillUnreadable`; not among `looked_at`.
        hits: see `BackfillHit`; held: those of them that are cases.
        fetched_bytes: of the files that were looked at.
        changed_at: when it has come on last.
        histogram: of each signal, how many files had it in which twentieth of 0..1.
    """

    __tablename__ = "backfill_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(8), default="run", server_default="run")
    state: Mapped[str] = mapped_column(String(8), default="open", server_default="open", index=True)
    source: Mapped[str] = mapped_column(String(500), default="pictrs", server_default="pictrs")
    options: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    changed_at: Mapped[datetime | None]
    slug: Mapped[str | None] = mapped_column(String(100))  # where a run of the first gates went on
    cursor: Mapped[str | None] = mapped_column(String(2000))
    newest: Mapped[dict[str, Any] | None]
    looked_at: Mapped[int] = mapped_column(default=0)
    reused: Mapped[int] = mapped_column(default=0, server_default="0")
    skipped: Mapped[int] = mapped_column(default=0, server_default="0")
    unreadable: Mapped[int] = mapped_column(default=0)
    hits: Mapped[int] = mapped_column(default=0, server_default="0")
    held: Mapped[int] = mapped_column(default=0, server_default="0")
    fetched_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    histogram: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")


class BackfillHit(Base):
    """A stored file that the policy would not have let in.

    Attributes:
        hex: pict-rs's own key of it; where that is not known, the SHA-256 alone.
        place: what its source calls it.
        stored_at: when it was stored, where that is known.
        case_id: the case that the run has made of it; None where it was not to, or could not.
        not_held: why it could not.
    """

    __tablename__ = "backfill_hits"

    run_id: Mapped[int] = mapped_column(primary_key=True)
    hex: Mapped[str] = mapped_column(String(78), primary_key=True)
    place: Mapped[str] = mapped_column(String(1100), default="", server_default="")
    verdict: Mapped[str] = mapped_column(String(8))
    reason: Mapped[str] = mapped_column(String(500))
    aliases: Mapped[list[Any]]
    signals: Mapped[dict[str, Any]]
    stored_at: Mapped[datetime | None]
    case_id: Mapped[str | None] = mapped_column(String(32), index=True)
    not_held: Mapped[str | None] = mapped_column(String(500))


class BackfillUnreadable(Base):
    """A stored file that nobody could look at: its source did not give it, or it could not be decoded.

    Attributes:
        hex: as of a hit; where not even the SHA-256 is known, a hash of its place.
    """

    __tablename__ = "backfill_unreadable"

    run_id: Mapped[int] = mapped_column(primary_key=True)
    hex: Mapped[str] = mapped_column(String(78), primary_key=True)
    place: Mapped[str] = mapped_column(String(1100), default="", server_default="")
    aliases: Mapped[list[Any]]
    reason: Mapped[str] = mapped_column(String(500))


class BackfillVersion(Base):
    """An ensemble that has looked at stored files: its name and version, and its signals in their order."""

    __tablename__ = "backfill_versions"

    id: Mapped[int] = mapped_column(primary_key=True)
    ensemble: Mapped[str] = mapped_column(String(200), index=True)
    signals: Mapped[list[Any]]


class BackfillFile(Base):
    """A stored file that was looked at. Of ten million files there are as many: no text, no key of its own.

    Attributes:
        key: SHA-256 of the content, or of where it lies; see `proxy.backfill.sources.Entry.key`.
        content: SHA-256 of the content, where `key` is not that.
        run_id: the run that has looked at it last.
        version_id: what has looked; None where its hash was known.
        at: when, in seconds since 1970.
        scores: two bytes a signal of the version, ten-thousandths rounded down: a threshold of four digits
            decides about them as it did about the signal.
    """

    __tablename__ = "backfill_files"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 — SQLAlchemy's own way to say it

    key: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    content: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    run_id: Mapped[int]
    version_id: Mapped[int | None]
    at: Mapped[int] = mapped_column(BigInteger)
    scores: Mapped[bytes] = mapped_column(LargeBinary(255))
