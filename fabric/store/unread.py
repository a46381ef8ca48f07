"""Decide what a stored value that its kind refuses still says of itself, by its key. Pure."""

from __future__ import annotations

from fabric.model import kinds
from fabric.store import keys
from fabric.store.kv import KeyValue
from policy.form import Key
from policy.unread import Unread, left

_NAMES = {kind.plural: kind.name for kind in kinds.KINDS}


def unread_of(item: KeyValue, why: str) -> Unread | None:
    """Return what is left of the resource in `item`, None where its key is of no kind that is known."""
    match keys.parse(item.key):
        case keys.ResourceKey(plural, namespace, name) if kind := _NAMES.get(plural):
            return left(Key(kind, namespace or "", name), item.value, why)
    return None
