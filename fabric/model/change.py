"""Decide what a resource becomes when it is first written, applied, replaced, patched or labelled.

All pure. `stored` is what stands in the datastore with its revision as metadata.resourceVersion; a
function that finds nothing to change returns `stored` itself, so that nobody writes it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar
from uuid import UUID

from fabric.errors import ConfigError, Conflict, Taken
from fabric.model.base import (
    COPIED_METADATA,
    NOT_ENFORCED,
    Metadata,
    Model,
    Resource,
    Tree,
    names_only,
    tree,
    value_at,
)
from fabric.model.wire import NO_SUCH_FIELD, dotted, from_tree

M = TypeVar("M", bound=Model)

# What names an object, or says since when it is: another value would make it another object.
_FIXED = (("kind",), ("apiVersion",), ("metadata", "name"), ("metadata", "namespace"), ("metadata", "uid"),
          ("metadata", "creationTimestamp"))  # fmt: skip

_ANNOTATIONS = ("metadata", "annotations")

# Strategic is what calicoctl does: a merge, since no list of these kinds has a merge key.
PatchType: TypeAlias = Literal["strategic", "merge", "json"]


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


def at_revision(resource: Resource, revision: int) -> Resource:
    """Return `resource` as read from a key at `revision`."""
    metadata = resource.metadata.model_copy(update={"resource_version": str(revision)})
    return resource.model_copy(update={"metadata": metadata})


def shown(resource: Resource) -> Tree:
    """Return what an operator sees: as stored, and the resourceVersion, which is the key's and not in its value."""
    value = tree(resource)
    if version := resource.metadata.resource_version:
        value["metadata"] = {**value["metadata"], "resourceVersion": version}
    return value


def without_noise(resource: Resource) -> Resource:
    """Return `resource` less what no operator writes: status, identity and times."""
    noise = {"uid": "", "resource_version": "", "generation": None, "creation_timestamp": None}
    fields: dict[str, object] = {"metadata": resource.metadata.model_copy(update=noise)}
    if "status" in type(resource).model_fields:
        fields["status"] = None
    bare = resource.model_copy(update=fields)
    extra = {name: value for name, value in (bare.model_extra or {}).items() if name != "status"}
    object.__setattr__(bare, "__pydantic_extra__", extra)
    return bare


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
    return _if_different(stored, _copied(stored, fields, wanted.model_extra))


def replaced(stored: Resource, wanted: Resource) -> Resource:
    """Return what to write when `wanted` takes the place of `stored`: only identity and an ungiven status stay."""
    kept = {"uid": stored.metadata.uid, "creation_timestamp": stored.metadata.creation_timestamp}
    fields: dict[str, object] = {"metadata": wanted.metadata.model_copy(update=kept)}
    if "status" in type(wanted).model_fields and "status" not in wanted.model_fields_set:
        fields["status"] = getattr(stored, "status", None)
    return _if_different(stored, wanted.model_copy(update=fields))


def patched(stored: Resource, patch: object, how: PatchType) -> Resource:
    """Return `stored` changed by `patch`, JSON values; `stored` itself if that changes nothing.

    A field that its kind does not have is refused, unless it stands in `stored` already.

    Raises:
        ConfigError: the patch cannot be applied, or what comes out breaks a rule of the kind.
        Conflict: it names a resourceVersion, and another one is stored.
    """
    before = shown(stored)
    if how == "json":
        after = _json_patched(before, patch)
    else:
        if not isinstance(patch, Mapping):
            raise ConfigError(f"the patch must be a mapping for the type {how}; -t json takes a list")
        if how == "strategic":
            _refuse_directives(patch, ())
        after = merge_patch(before, patch)
    return _reread(stored, before, after)


def labelled(
    stored: Resource, labels: Mapping[str, str], remove: Collection[str], *, overwrite: bool
) -> Resource:
    """Return `stored` with `labels` set and the labels `remove` taken off.

    Raises:
        Taken: a label has another value, and `overwrite` does not allow to change it.
        ConfigError: a label to remove is not there, or a new one breaks a rule.
    """
    there = dict(stored.metadata.labels)
    if missing := [key for key in remove if key not in there]:
        raise ConfigError(f"label {missing[0]}: is not on it; it cannot be removed")
    if held := [key for key, value in labels.items() if not overwrite and there.get(key, value) != value]:
        raise Taken(f'label {held[0]}: is "{there[held[0]]}" already; give --overwrite to change it')
    after = {key: value for key, value in (there | dict(labels)).items() if key not in remove}
    before = shown(stored)
    return _reread(stored, before, {**before, "metadata": {**before["metadata"], "labels": after}})


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


def _json_patched(before: Tree, patch: object) -> object:
    import jsonpatch  # only here: nobody else should wait for it

    if not isinstance(patch, list):
        raise ConfigError("the patch must be a list of operations for the type json (RFC 6902)")
    try:
        return jsonpatch.apply_patch(before, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as err:
        reason = re.sub(r" \(<class '\w+'>\)", "", str(err))  # Python's types are nothing to an operator
        raise ConfigError(f"the patch cannot be applied: {reason}") from None


def _refuse_directives(patch: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Refuse what a strategic merge patch does and RFC 7396 does not."""
    for key, value in patch.items():
        where = (*path, key)
        if key.startswith("$") or where in {("metadata", "finalizers"), ("metadata", "ownerReferences")}:
            raise ConfigError(
                f"{dotted(where)}: is not supported in a strategic patch; lists are replaced whole (-t merge), "
                "and -t json changes single items"
            )
        if isinstance(value, Mapping):
            _refuse_directives(value, where)


def _reread(stored: Resource, before: Tree, after: object) -> Resource:
    """Check what became of `before`, the tree of `stored`, and return it as a resource."""
    for path in _FIXED:
        if value_at(before, path) != (now := value_at(after, path)):
            was = json.dumps(value_at(before, path))
            raise ConfigError(f"{dotted(path)}: {json.dumps(now)}: cannot be changed; it is {was}")
    if (wanted := value_at(after, ("metadata", "resourceVersion"), "")) != stored.metadata.resource_version:
        raise stale(wanted, stored.metadata.resource_version)
    read = from_tree(after, unknown="forbid")
    if isinstance(read, tuple):
        # What was there before is not this patch's mistake: a newer tool's fields; an annotation, or what only
        # files may not have, that it left.
        mistakes = [
            p
            for p in read
            if value_at(before, p.path) is None
            or not (
                p.rule.startswith(NO_SUCH_FIELD)
                or (
                    (p.path[:2] == _ANNOTATIONS or p.rule.startswith(NOT_ENFORCED))
                    and value_at(before, p.path) == value_at(after, p.path)
                )
            )
        ]
        if mistakes:
            raise ConfigError("; ".join(map(str, mistakes)))
        read = from_tree(after)
    if isinstance(read, tuple):
        raise ConfigError("; ".join(map(str, read)))
    return _if_different(stored, read)


def stale(wanted: object, stands: object) -> Conflict:
    """Return the error for a change made on another revision than the one that is stored."""
    now = f"revision {stands} is stored now" if stands else "nothing is stored there any more"
    return Conflict(
        f"the change was made on resourceVersion {wanted}, and {now}: somebody else was first; get it again and "
        "redo the change, or leave resourceVersion out to write whatever stands there"
    )


def _if_different(stored: Resource, after: Resource) -> Resource:
    after = _without_stale_copy(stored, after)
    return stored if _compared(after.as_written()) == _compared(stored) else after


def _compared(resource: Resource) -> Tree:
    """Return the tree less a copy of the name, which a policy that nobody wrote since may lack."""
    value = tree(resource)
    annotations: Mapping[str, str] = value["metadata"].get("annotations", {})
    kept = {
        key: text for key, text in annotations.items() if not (key == COPIED_METADATA and names_only(text))
    }
    return {**value, "metadata": {**value["metadata"], "annotations": kept}}


def _without_stale_copy(stored: Resource, after: Resource) -> Resource:
    """Return `after` less a copy of labels and annotations, where these are no longer what they were.

    A copy of the name alone stays: nothing here changes a name.
    """
    was, metadata = stored.metadata, after.as_written().metadata
    copy = metadata.annotations.get(COPIED_METADATA)
    unchanged = (metadata.labels, metadata.annotations) == (was.labels, was.annotations)
    if copy is None or unchanged or names_only(copy):
        return after
    kept = {key: text for key, text in metadata.annotations.items() if key != COPIED_METADATA}
    return after.model_copy(update={"metadata": after.metadata.model_copy(update={"annotations": kept})})


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
