"""Decide who has an address: endpoints by their own, network sets by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from policy.form import Address, Key, Prefix

_Net: TypeAlias = tuple[tuple[int, int], int]  # (version, length), bits


def _net(prefix: Prefix) -> _Net:
    return (prefix.version, prefix.prefixlen), int(prefix.network_address)


class Holders:
    """Keys by prefix. It is never changed: `changed` returns another that shares the rest."""

    def __init__(self) -> None:
        self._by_length: dict[tuple[int, int], dict[int, tuple[Key, ...]]] = {}

    def of(self, prefix: Prefix) -> tuple[Key, ...]:
        """Return who has exactly `prefix`."""
        length, bits = _net(prefix)
        return self._by_length.get(length, {}).get(bits, ())

    def at(self, address: Address) -> tuple[Key, ...]:
        """Return who has `address` by itself."""
        by_bits = self._by_length.get((address.version, address.max_prefixlen))
        return by_bits.get(int(address), ()) if by_bits else ()

    def around(self, address: Address) -> Iterator[Key]:
        """Yield who has a prefix that `address` is in."""
        bits, width = int(address), address.max_prefixlen
        for (version, length), by_bits in self._by_length.items():
            if version == address.version:
                yield from by_bits.get(bits >> (width - length) << (width - length), ())

    def changed(self, gone: Iterable[tuple[Key, Prefix]], came: Iterable[tuple[Key, Prefix]]) -> Holders:
        """Return the holders after `gone`, then `came`."""
        new = Holders()
        new._by_length = self._by_length.copy()
        ours = set[tuple[int, int]]()

        def edit(length: tuple[int, int]) -> dict[int, tuple[Key, ...]]:
            if length not in ours:
                ours.add(length)
                new._by_length[length] = new._by_length.get(length, {}).copy()
            return new._by_length[length]

        for key, prefix in gone:
            length, bits = _net(prefix)
            by_bits = edit(length)
            if left := tuple(held for held in by_bits[bits] if held != key):
                by_bits[bits] = left
            else:
                del by_bits[bits]
                if not by_bits:
                    del new._by_length[length]
                    ours.discard(length)
        for key, prefix in came:
            length, bits = _net(prefix)
            by_bits = edit(length)
            by_bits[bits] = (*by_bits.get(bits, ()), key)
        return new
