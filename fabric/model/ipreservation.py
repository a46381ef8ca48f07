"""Addresses that are never given out by themselves (Calico's IPReservation)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fabric.model.base import Model, Resource
from fabric.model.fields import LooseNet


class IPReservationSpec(Model):
    """Only automatic allocations heed them: what is held stays, and a request for one address gets it."""

    reserved_cidrs: tuple[LooseNet, ...] = Field(default=(), alias="reservedCIDRs")


class IPReservation(Resource):
    kind: Literal["IPReservation"] = "IPReservation"
    spec: IPReservationSpec = Field(default_factory=IPReservationSpec)
