"""Decide what an image's name starts in a namespace node: the data is profiles.yml beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Profile:
    """How a node of one image runs; profiles.yml says what each field means."""

    name: str
    images: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    start: str = ""
    main: tuple[str, ...] = ()
    ready: str = ""


PLAIN = "plain"


def repository(image: str) -> str:
    """Return the image's name as profiles.yml spells it: no tag, no digest, no Docker Hub prefix.

    >>> repository("docker.io/library/alpine:3.20"), repository("localhost:5000/frr:v8.4.1")
    ('alpine', 'localhost:5000/frr')
    """
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return (head + slash + last.partition(":")[0]).removeprefix("docker.io/").removeprefix("library/")


def profile_of(image: str) -> Profile | None:
    """Return the profile that lists `image`, or None: it then runs as plain Linux."""
    return next((p for p in profiles().values() if repository(image) in p.images), None)


@cache
def profiles() -> dict[str, Profile]:
    """Return every profile, by name."""
    data = yaml.safe_load(files("fabric.lab").joinpath("profiles.yml").read_text())
    return {name: _profile(name, fields) for name, fields in data.items()}


def _profile(name: str, fields: dict[str, Any]) -> Profile:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Profile(name=name, **fields)
