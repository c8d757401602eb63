"""Who looks at the files of a run: the classifiers of the configuration, or a Ray cluster."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.backfill.cluster import Reach, cluster, import_ray
from proxy.backfill.options import Options, a_count
from proxy.backfill.pace import Pace
from proxy.backfill.viewing import Viewer
from proxy.commands import argument
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.parts import Parts

_AT_ONCE = 64  # at most, with each classifier
_RAY_AT_ONCE = 16  # with each worker of a cluster, which has as many again on their way
_MEGABYTE = 1024 * 1024
_MOST_WORKERS, _MOST_CPUS = 4096, 1024
_WORKERS, _CPUS = 2, 1
_ADDRESS = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_FILES = "files:"


@dataclass(frozen=True, slots=True)
class Engine:
    """
    Attributes:
        ensembles: what looks now.
        pace: how many files are under way.
        viewer: brings files to where they are looked at; None where that is here.
    """

    ensembles: frozenset[str]
    pace: Pace
    viewer: Viewer | None = None


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `engine`. None of them is kept with a run, which may go on with another engine."""
    group = parser.add_argument_group("who looks; not kept with the run")
    group.add_argument(
        "--engine",
        choices=("classifiers", "ray"),
        default="classifiers",
        help="those of the configuration (default), or a Ray cluster's workers, which also fetch",
    )
    group.add_argument(
        "--ray-ensemble",
        type=_recipe,
        metavar="NAME",
        help="of the classifier on the workers",
    )
    group.add_argument(
        "--ray-address", metavar="HOST:PORT", help="of a cluster; default: a Ray here that ends with it"
    )
    group.add_argument("--ray-workers", type=argument(a_count), metavar="N", help=f"default: {_WORKERS}")
    group.add_argument(
        "--ray-cpus", type=argument(a_count), metavar="N", help=f"of each worker; default: {_CPUS}"
    )
    group.add_argument("--ray-gpus", type=argument(_gpus), metavar="N", help="of each; default: none")


def check_engine(options: argparse.Namespace, config: Config) -> None:
    """Before anything is begun.

    Raises:
        ConfigError: what is asked for cannot look.
    """
    if options.engine == "classifiers":
        for name in ("ensemble", "address", "workers", "cpus", "gpus"):
            if getattr(options, f"ray_{name}", None) is not None:
                raise ConfigError(f"--ray-{name}: is for --engine ray, and the classifiers are to look")
        if all(section.url is None for section in config.classifiers):
            raise ConfigError(
                "classifiers: a backfill is a program that nobody dials, so it needs a classifier with a url"
            )
        return
    if options.ray_ensemble is None:
        raise ConfigError("--engine ray: needs --ray-ensemble, the name of one that the workers have")
    address = options.ray_address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)  # as Ray itself does
    # Else Ray would begin one here, and not one that is this machine's alone.
    if address not in (None, "auto") and not _ADDRESS.fullmatch(address):
        raise ConfigError(
            f"--ray-address {address!r}: run it on a machine of the cluster, with HOST:PORT or auto"
        )
    if (options.ray_workers or 0) > _MOST_WORKERS or (options.ray_cpus or 0) > _MOST_CPUS:
        raise ConfigError(f"--ray-workers, --ray-cpus: at most {_MOST_WORKERS} and {_MOST_CPUS}")
    import_ray(is_local=options.ray_address is None)


def check_wanted(options: argparse.Namespace, config: Config, wanted: Options) -> None:
    """Whether the engine can do what a run asks for.

    Raises:
        ConfigError: it cannot.
    """
    if options.engine == "ray" and wanted.via_thumbnails is not None:
        raise ConfigError("--engine ray: looks at originals alone; --via-thumbnails is for the classifiers")
    if wanted.action == "hold" and config.pictrs.api_key is None:
        raise ConfigError("--action hold: needs pictrs.api_key")


@asynccontextmanager
async def engine(
    options: argparse.Namespace, made: Parts, wanted: Options, largest: int
) -> AsyncIterator[Engine]:
    """Who looks, for as long as the run takes.

    Args:
        wanted: of the run.
        largest: bytes of a file.

    Raises:
        ConfigError: nobody can.
    """
    if options.engine == "classifiers":
        yield await classifiers(made)
        return
    from proxy.backfill.cluster_worker import Job

    config = made.config
    key = config.pictrs.api_key
    job = Job(
        options=wanted,
        url=config.pictrs.url,
        api_key=key.get_secret_value() if key else None,
        timeout_s=config.pictrs.timeout_s,
        settings=config.backfill,
        ensemble=options.ray_ensemble,
        decoders=options.ray_cpus or _CPUS,
        devices=() if options.ray_gpus else ("cpu",),  # Ray shows every card to who asks for none
        largest=largest,
        memory=max(config.backfill.memory_mb * _MEGABYTE, largest),
        signals=made.policy.signals,
    )
    reach = Reach(
        options.ray_address,
        options.ray_workers or _WORKERS,
        options.ray_cpus or _CPUS,
        options.ray_gpus or 0.0,
    )
    folder = Path(wanted.source.removeprefix(_FILES)) if wanted.source.startswith(_FILES) else None
    is_here = None if folder is None else lambda entry: (folder / entry.place).exists()
    async with cluster(reach, job, is_here) as workers:
        about = await workers.about()
        if missing := made.policy.signals - about.signals:
            raise ConfigError(
                f"policy.rules: --ray-ensemble {options.ray_ensemble} has no signal "
                f"{', '.join(sorted(missing))}; name signals that it has (pictrs-classifier info shows them)"
            )
        at_once = _RAY_AT_ONCE * reach.workers
        yield Engine(frozenset({about.ensemble}), Pace(at_once, at_once), workers)


async def classifiers(made: Parts) -> Engine:
    """Those of the configuration."""
    count = sum(section.url is not None for section in made.config.classifiers)
    return Engine(await made.lookout.ensembles(), Pace(_AT_ONCE * count))


def _recipe(word: str) -> str:
    """A worker has another folder that it is in."""
    return str(Path(word).absolute()) if word.endswith(".toml") else word


def _gpus(word: str) -> float:
    number = float(word)
    if not 0 <= number <= 64 or (number > 1 and number % 1):
        raise ValueError("must be 0 to 64, whole above 1; half a one is 0.5")
    return number
