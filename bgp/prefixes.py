"""Decide whether a prefix is one of many, or part of one: by a look-up for each length there is."""

from __future__ import annotations

from collections.abc import Iterable

from bgp.rib import Prefix


class Cover:
    """Prefixes to look others up in."""

    __slots__ = ("_by_length",)

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._by_length: dict[int, dict[int, dict[int, Prefix]]] = {4: {}, 6: {}}
        for prefix in prefixes:
            shift = prefix.max_prefixlen - prefix.prefixlen
            found = self._by_length[prefix.version].setdefault(prefix.prefixlen, {})
            found[int(prefix.network_address) >> shift] = prefix

    def of(self, prefix: Prefix) -> Prefix | None:
        """Return one of the prefixes that is `prefix` or contains it, None where none does."""
        lengths = self._by_length[prefix.version]
        if not lengths:
            return None
        address, bits, length = int(prefix.network_address), prefix.max_prefixlen, prefix.prefixlen
        for covering, found in lengths.items():
            if covering <= length and (there := found.get(address >> (bits - covering))) is not None:
                return there
        return None
