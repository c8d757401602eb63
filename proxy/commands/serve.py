"""`pictrs-gate serve`: the gate itself."""

from __future__ import annotations

import argparse
import asyncio

from proxy import app
from proxy.commands import Commands, Shared
from proxy.config import load
from proxy.errors import ConfigError
from proxy.sections import host_and_port


def add(commands: Commands, shared: Shared) -> None:
    """Adds the command."""
    serve = commands.add_parser("serve", parents=[shared.configured], help="run the gate")
    serve.set_defaults(run=_serve)


async def _serve(options: argparse.Namespace) -> None:
    config = load(options.config)
    for name, section in (("server", config.server), ("internal", config.internal)):
        try:
            await asyncio.get_running_loop().getaddrinfo(*host_and_port(section.listen))
        except (OSError, UnicodeError):
            raise ConfigError(
                f"{name}.listen: {section.listen}: no such host; name an address of this machine"
            ) from None
    await app.serve(config)
