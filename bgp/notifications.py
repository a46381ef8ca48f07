"""Say in words what a NOTIFICATION means."""

from __future__ import annotations

from collections.abc import Mapping

# RFC 4271 §4.5, RFC 4486 §3, RFC 5492 §3, RFC 8538 §3. Subcode 0 is the code alone.
NAMES: Mapping[tuple[int, int], str] = {
    (1, 0): "message header error",
    (1, 1): "connection not synchronized",
    (1, 2): "bad message length",
    (1, 3): "bad message type",
    (2, 0): "OPEN message error",
    (2, 1): "unsupported version number",
    (2, 2): "bad peer AS",
    (2, 3): "bad BGP identifier",
    (2, 4): "unsupported optional parameter",
    (2, 6): "unacceptable hold time",
    (2, 7): "unsupported capability",
    (3, 0): "UPDATE message error",
    (3, 1): "malformed attribute list",
    (3, 2): "unrecognized well-known attribute",
    (3, 3): "missing well-known attribute",
    (3, 4): "attribute flags error",
    (3, 5): "attribute length error",
    (3, 6): "invalid ORIGIN attribute",
    (3, 8): "invalid NEXT_HOP attribute",
    (3, 9): "optional attribute error",
    (3, 10): "invalid network field",
    (3, 11): "malformed AS_PATH",
    (4, 0): "hold timer expired",
    (5, 0): "finite state machine error",
    (6, 0): "cease",
    (6, 1): "maximum number of prefixes reached",
    (6, 2): "administrative shutdown",
    (6, 3): "peer de-configured",
    (6, 4): "administrative reset",
    (6, 5): "connection rejected",
    (6, 6): "other configuration change",
    (6, 7): "connection collision resolution",
    (6, 8): "out of resources",
    (6, 9): "hard reset",
}


def words(code: int, subcode: int) -> str:
    """Return the RFCs' name for it; for a subcode that has none, that of its code."""
    return NAMES.get((code, subcode)) or NAMES.get((code, 0), "unknown code")
