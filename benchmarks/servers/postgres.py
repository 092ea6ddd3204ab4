"""PostgreSQL with its defaults: a commit is answered when it is on disk."""

from __future__ import annotations

import os
import pwd
import subprocess
from glob import glob

from benchmarks.harness.model import UnavailableError
from benchmarks.servers.base import LOOPBACK, Server, first_line, program

MAX_CONNECTIONS = 600


class PostgresServer(Server):
    """A new cluster; run as ``postgres`` (or ``nobody``) where the run itself is root's."""

    name = "postgresql"
    package = "apt-get install postgresql"

    def launch(self) -> subprocess.Popen[bytes]:
        """Make a cluster and start ``postgres``."""
        places = sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)
        initdb = program("initdb", self.package, *places)
        postgres = program("postgres", self.package, *places)
        self.version = first_line(postgres, "--version")
        user = self._user()
        if user is not None:
            os.chown(self.directory, pwd.getpwnam(user).pw_uid, -1)
        cluster = str(self.directory / "cluster")
        options = ("-D", cluster, "-U", "bench", "-A", "trust", "--no-locale", "-E", "UTF8")
        made = self.spawn(initdb, *options, user=user).wait()
        if made != 0:
            raise UnavailableError(f"initdb ended with {made}: {(self.directory / 'output.log').read_text()[-300:]}")
        settings = (f"listen_addresses={LOOPBACK}", f"port={self.port}", f"max_connections={MAX_CONNECTIONS}")
        words = [word for setting in (*settings, "unix_socket_directories=") for word in ("-c", setting)]
        return self.spawn(postgres, "-D", cluster, *words, user=user)

    @staticmethod
    def _user() -> str | None:
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in known else "nobody"

    @property
    def address(self) -> str:
        """A connection URL."""
        return f"postgresql://bench@{LOOPBACK}:{self.port}/postgres"
