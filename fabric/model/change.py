"""Decide what a resource becomes when it is first written, and when a file is applied over it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from fabric.model.base import Metadata, Model, Resource, tree

M = TypeVar("M", bound=Model)


def stamped(resource: Resource, now: datetime, uid: UUID) -> Resource:
    """Return `resource` with a uid and a creation time, without which calicoctl refuses to update it.

    Those it already has are kept.
    """
    metadata = resource.metadata
    stamps = {
        "uid": metadata.uid or str(uid),
        "creation_timestamp": metadata.creation_timestamp or now.replace(microsecond=0),
    }
    return resource.model_copy(update={"metadata": metadata.model_copy(update=stamps)})


def applied(stored: Resource, wanted: Resource) -> Resource:
    """Return what to write when an operator applies `wanted` over `stored`: `stored` itself if no change.

    As calicoctl does, a given spec, labels or annotations replace the stored ones whole. What was not
    given stays: uid, creation time, status, and the fields this version does not know.
    """
    given = wanted.model_fields_set.intersection(type(wanted).model_fields)
    fields: dict[str, object] = {name: getattr(wanted, name) for name in given}
    for name, value in fields.items():
        if isinstance(value, Model):
            fields[name] = _keeping_unknown(getattr(stored, name), value)
    fields["metadata"] = _applied_metadata(stored.metadata, wanted.metadata)
    merged = _copied(stored, fields, wanted.model_extra)
    return stored if tree(merged.as_written()) == tree(stored) else merged


def _applied_metadata(stored: Metadata, wanted: Metadata) -> Metadata:
    given = wanted.model_fields_set & {"labels", "annotations"}
    return _copied(stored, {name: getattr(wanted, name) for name in given}, wanted.model_extra)


def _keeping_unknown(stored: object, wanted: Model) -> Model:
    """`wanted`, with the unknown fields of `stored` at the same places; lists are not looked into."""
    if not isinstance(stored, Model):
        return wanted
    fields: dict[str, object] = {}
    for name in type(wanted).model_fields:
        if isinstance(after := getattr(wanted, name), Model):
            fields[name] = _keeping_unknown(getattr(stored, name), after)
    return _copied(wanted, fields, {**(stored.model_extra or {}), **(wanted.model_extra or {})})


def _copied(model: M, fields: Mapping[str, object], extra: Mapping[str, object] | None) -> M:
    copied = model.model_copy(update=fields)
    # Not by `update`, which would take an unknown field with the Python name of a known one for that one.
    # It is None, not empty, where unknown fields were forbidden on reading.
    object.__setattr__(copied, "__pydantic_extra__", {**(copied.model_extra or {}), **(extra or {})})
    return copied


def merge_patch(target: object, patch: object) -> object:
    """Return `target`, JSON values, changed by `patch` as RFC 7396 has it: null removes, maps are merged."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
