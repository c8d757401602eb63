"""A PostgreSQL of the tests' own: Debian's programs, a cluster in a folder that goes away with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

from proxy.database import Database
from tests.processes import Program, free_port

LOCKED, PASSWORD = "locked", "a-password-for-tests-only"  # a user who has to show it
_USER = "postgres"  # where the tests run as root, which PostgreSQL refuses to


def _programs() -> Path:
    """Debian's folder with the newest version's programs, or the one that is on PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("postgres")
    if not folders and found is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    return folders[-1] if folders else Path(str(found)).parent


class Postgresql:
    """A running server on loopback: `gate` may do anything, `LOCKED` needs its password."""

    def __init__(self) -> None:
        self._bin = _programs()
        # Not pytest's folder: PostgreSQL's own user has to get there, and a socket's path has to be short.
        self._folder = Path(tempfile.mkdtemp(prefix="gate-postgresql-"))
        self._as = []
        if os.getuid() == 0:
            user = pwd.getpwnam(_USER)
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self.port = free_port()
        self._made = 0
        making = [self._bin / "initdb", "-D", self._folder / "data", "-U", "gate", "-A", "trust"]
        making += ["-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*self._as, *making], check=True, capture_output=True, timeout=60)
        rules = self._folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {LOCKED} 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        self.program: Program | None = None
        self.start()
        self._run(f"CREATE USER {LOCKED} SUPERUSER PASSWORD '{PASSWORD}'")
        self._run("CREATE DATABASE migrated")
        Database(self.url("migrated")).close()

    def start(self) -> None:
        """Starts it, again on the same port."""
        settings = {
            "unix_socket_directories": str(self._folder),
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "fsync": "off",  # helps against power cuts only
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": "60",
            "autovacuum": "off",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = [*self._as, self._bin / "postgres", "-D", self._folder / "data", *options]
        self.program = Program(command, self._folder / "log", cwd=self._folder)
        self.program.wait_until(self._answers)

    def stop(self, *, at_once: bool = False) -> None:
        """Ends it; `at_once` as a crash does: whatever was under way is lost, what was committed is not."""
        assert self.program is not None
        self.program.process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
        self.program.process.wait(20)

    def close(self) -> None:
        """Ends it and removes everything."""
        if self.program is not None and self.program.process.poll() is None:
            self.stop(at_once=True)
        subprocess.run(["rm", "-rf", self._folder], check=True, timeout=60)  # thousands of small files

    def new_database(self, *, migrated: bool = True) -> str:
        """The URL of a new one, with the gate's tables or empty."""
        self._made += 1
        name = f"gate_{self._made}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {'migrated' if migrated else 'template0'}")
        return self.url(name)

    def url(self, name: str, user: str = "gate") -> str:
        """Of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}"

    def run(self, url: str, statement: str) -> None:
        """Runs a statement in a database, as its administrator."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, statement: str) -> None:
        self.run(self.url("postgres"), statement)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
