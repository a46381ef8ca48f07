"""Run one datastore operation for a command, on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import click

from fabric import config as configuration
from fabric.cli import output
from fabric.cli.options import Access
from fabric.config import Config
from fabric.model import kinds
from fabric.model.base import Resource
from fabric.ops import resources
from fabric.store.etcd import connect
from fabric.store.kv import KeyValueStore

T = TypeVar("T")


def configured(flags: Mapping[str, str] | None = None) -> Config:
    """Return the settings of file, environment and the root command's options, and of `flags` over them all.

    Raises:
        ConfigError: they make no sense; nothing was done.
    """
    context = click.get_current_context(silent=True)
    said = context.find_object(Access) if context else None
    said = said or Access()
    return configuration.load(said.file, flags={**said.flags, **(flags or {})})


def with_store(work: Callable[[KeyValueStore], Awaitable[T]], config: Config | None = None) -> T:
    """Return what `work` makes of the datastore that `config` names, by default the configured one."""
    chosen = config or configured()

    async def connected() -> T:
        kv = connect(chosen)
        try:
            return await work(kv)
        finally:
            await kv.close()

    with output.progress("etcd"):
        return asyncio.run(connected())


def fetch(word: str, names: Sequence[str] = (), namespace: str | None = None) -> list[Resource]:
    """Return the resources that `get WORD NAMES` means; those that cannot be read are named on stderr."""
    kind = kinds.lookup(word)
    if names:
        return with_store(lambda kv: resources.get(kv, kind, names, namespace))
    listed = with_store(lambda kv: resources.listing(kv, Resource, kind, namespace))
    for line in listed.warnings:
        output.note(f"warning: {line}")
    return list(listed.resources)
