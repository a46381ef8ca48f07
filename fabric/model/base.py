"""What every resource is made of: the frozen base, metadata, and how a value becomes Calico's JSON tree.

Unknown fields are kept where they were found and written back, so a newer tool's settings survive our
updates. What is left out on writing follows the Go structs on the other side:

- a field whose default is None stands for a pointer: whatever was set is written, False and 0 too;
- any other field is left out at its type's zero value, unless it is required or marked ALWAYS;
- a nested struct is written even when it is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from fabric.model.fields import Annotations, LabelOrEmpty, Labels, Name, Timestamp, broken

API_VERSION: Final = "projectcalico.org/v3"
ALWAYS: Final = "written at its zero value too"
IN_A_FILE: Final = "in an operator's file"  # what validators are told of the context
NOT_ENFORCED: Final = "is not enforced here"  # and behind it why, and what to write instead

# Calico's own copy of metadata, as JSON. In etcd it is a policy's name as it was given, and no more; in what was
# exported from Kubernetes it has labels and annotations, and is read back in their place.
# Source: calico, libcalico-go/lib/backend/etcdv3, and …/k8s/resources.
COPIED_METADATA: Final = "projectcalico.org/metadata"

Tree: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Means:
    """Annotates a field that is absent unless given (a pointer in Go) with what its absence means.

    `value` is a JSON value, or a phrase in parentheses where it depends on something else.
    """

    value: object


@dataclass(frozen=True, slots=True)
class NotInFiles:
    """Annotates a field that stays where it is stored, and is a mistake in a file: nothing here can do what it asks."""

    why: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._refuse, handler(source))

    def _refuse(self, value: object, info: ValidationInfo) -> object:
        if info.context is IN_A_FILE:
            raise ValueError(f"{NOT_ENFORCED}: {self.why}")
        return value


class Model(BaseModel):
    """A frozen value whose fields are Calico's in camelCase; see the module for what is written."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        defer_build=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )

    # The fields, by alias, that are plain text in Go and no pointers: "" there is the same as absent. For any
    # other field it is a mistake, and to pass over it could widen a rule.
    blank_is_absent: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, data: object) -> object:
        if not isinstance(data, dict) or (None not in data.values() and "" not in data.values()):
            return data
        known = {field.alias for field in cls.model_fields.values()}
        return {key: value for key, value in data.items() if not cls._absent(key, value, known)}

    @classmethod
    def _absent(cls, key: str, value: object, known: set[str | None]) -> bool:
        return (value is None and key in known) or (value == "" and key in cls.blank_is_absent)


class Metadata(Model):
    """Kubernetes' ObjectMeta, less what only its server writes: that is dropped from files, and kept in the store."""

    name: Name
    generate_name: str = ""
    namespace: LabelOrEmpty = ""
    uid: str = ""
    # Read from files that a `get` printed, and never written: the key's own revision is the truth.
    resource_version: str = Field(default="", exclude=True)
    generation: int | None = None
    creation_timestamp: Timestamp | None = None
    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)
    owner_references: tuple[Mapping[str, Any], ...] = ()
    finalizers: tuple[str, ...] = ()


def names_only(copy: str) -> bool:
    """Whether a COPIED_METADATA has a name and nothing else."""
    try:
        value = json.loads(copy)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() == {"name"}


def named(pattern: str, rule: str) -> AfterValidator:
    """Accept metadata whose name `pattern` matches as a whole: what a kind asks beyond `Name`."""
    compiled = re.compile(pattern)

    def validate(metadata: Metadata) -> Metadata:
        if not compiled.fullmatch(metadata.name):
            raise broken(rule, "name", value=metadata.name)
        return metadata

    return AfterValidator(validate)


class Resource(Model):
    """One resource of any kind. Subclasses set `kind`, and add `spec` and sometimes `status`."""

    kind: str
    api_version: str = API_VERSION
    metadata: Metadata

    def as_written(self) -> Self:
        """Return what the datastore should hold: self, plus what Calico derives on every write."""
        return self


class Unknown(Resource):
    """A kind that is not modelled here: everything but the metadata is an unknown field, so kept."""


def tree(model: Model) -> Tree:
    """Return `model` as JSON values in Calico's shape and order, unknown fields last."""
    known: Tree = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if not _left_out(value, field):
            known[field.alias or name] = _tree_value(value)
    return known | (model.model_extra or {})


def value_at(value: object, path: Path, absent: object = None) -> object:
    """Return what stands at `path` of JSON values, `absent` where nothing does."""
    for step in path:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list(), int() if step < len(value):
                value = value[step]
            case _:
                return absent
    return value


def _left_out(value: object, field: FieldInfo) -> bool:
    if value is None or field.exclude:
        return True
    if field.default is None or field.is_required() or ALWAYS in field.metadata:
        return False
    return not isinstance(value, Model) and not value


def _tree_value(value: object) -> object:
    match value:
        case Model():
            return tree(value)
        case tuple():
            return [_tree_value(item) for item in value]
        case Mapping():
            return dict(value)
        case datetime():
            return value.isoformat(timespec="seconds").replace("+00:00", "Z")
        case bool() | int() | float() | str():
            return value
        case _:
            return str(value)
