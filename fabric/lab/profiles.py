"""Decide what an image's name starts in a namespace node, and which images and kinds cannot run in one.

The data is profiles.yml beside this file, which says what each field means. `lab-profiles.yml` beside a
topology adds to it in the same format: its profiles come first, and one named as a profile here is that
profile with more images, and with the fields that it gives in place of those here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fabric.lab import source as sources
from fabric.lab.format import sysctl
from fabric.lab.source import Source

BESIDE = "lab-profiles.yml"
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Save:
    """How to save a node's configuration: what `command` prints goes to a file of this name."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """How a node of one image runs; profiles.yml says what each field means."""

    name: str
    images: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    start: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    ready: str = ""
    config: str = ""
    save: Save | None = None
    daemons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Kinds and images, as patterns of a shell, that cannot run in namespaces, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    why: str
    kinds: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profiles:
    """What is known of images, the first that fits counting."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()

    def of(self, image: str) -> Profile | None:
        """Return the profile that lists `image`, or None: it then runs as plain Linux."""
        return next((p for p in self.profiles.values() if repository(image) in p.images), None)

    def refusal(self, kind: str, image: str) -> str:
        """Return which of the two cannot run in namespaces, and why; "" if both can, as far as is known."""
        for refusal in self.refused:
            if any(fnmatchcase(kind, pattern) for pattern in refusal.kinds):
                return f"kind {kind} {refusal.why}"
            if self.of(image) is None and any(fnmatchcase(repository(image), p) for p in refusal.images):
                return f"image {image} {refusal.why}"
        return ""


def _path(value: str) -> str:
    if not value.startswith("/") or ".." in PurePosixPath(value).parts:
        raise ValueError(f'"{value}": write it from / on, without ".."')
    return value


_Path = Annotated[str, AfterValidator(_path)]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...] = Field(min_length=1)
    scratch: tuple[_Path, ...] = ()
    files: dict[_Path, str] = Field(default_factory=dict)
    sysctls: dict[Annotated[str, BeforeValidator(sysctl)], str] = Field(default_factory=dict)
    start: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    ready: str = ""
    config: _Path = ""
    save: Save | None = None
    daemons: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    profiles: dict[str, _Fields] = Field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()


def repository(image: str) -> str:
    """Return the image's name as profiles.yml spells it: no tag, no digest, no Docker Hub prefix.

    >>> repository("docker.io/library/alpine:3.20"), repository("localhost:5000/frr:v8.4.1")
    ('alpine', 'localhost:5000/frr')
    """
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return (head + slash + last.partition(":")[0]).removeprefix("docker.io/").removeprefix("library/")


@cache
def builtin() -> Profiles:
    """Return what comes with fabricctl."""
    text = files("fabric.lab").joinpath("profiles.yml").read_text()
    return _extended(Profiles(), sources.parse(text, Path("profiles.yml")))


def beside(directory: Path) -> Profiles:
    """Return what holds for topologies in `directory`.

    Raises:
        ConfigError: its lab-profiles.yml cannot be read, or is not the format.
    """
    path = directory / BESIDE
    if not path.exists():
        return builtin()
    return _extended(builtin(), sources.read(path, what="a file of lab profiles"))


def _extended(base: Profiles, source: Source) -> Profiles:
    file = sources.validated(source, _File)
    own: dict[str, Profile] = {}
    for name, fields in file.profiles.items():
        known = base.profiles.get(name, Profile(name))
        given = fields.given()
        own[name] = replace(known, **given | {"images": (*fields.images, *known.images)})
    return Profiles(
        own | {n: p for n, p in base.profiles.items() if n not in own}, (*file.refused, *base.refused)
    )
