"""Everything fabricctl raises on purpose.

    FabricError
    ├── ConfigError      the operator's input is wrong; retrying cannot help
    ├── NotFound         the named thing does not exist
    ├── Taken            a name, address or port has another holder, whom the message names
    ├── Exhausted        no free address or block is left in the pools that may be used
    ├── NotInSync        the datastore snapshot is incomplete; wait, never guess
    ├── StoreError       etcd did not answer, or refused; the message says which endpoint
    │   ├── Conflict     another writer was first: read again, decide again
    │   ├── Forbidden    no role of our user allows it
    │   └── Compacted    the watched revision is gone: list again
    ├── AgentError       this node's agent did not answer on its socket
    ├── SpeakerError     this node's BGP speaker did not answer, or refused
    ├── LabError         a lab could not be built or taken down
    └── DataplaneError   the kernel refused; carries the errno, so nobody matches on text

A message answers, in order: what was attempted, on which object and node, what the system said,
what state we are in now, and what to do.
"""

from __future__ import annotations

import errno
import os


class FabricError(Exception):
    """Catching this means "anything fabricctl itself reports"; bugs pass through."""


class ConfigError(FabricError):
    """The operator's input is wrong; nothing was changed and retrying cannot help."""


class NotFound(FabricError):
    """The named object does not exist."""


class Taken(FabricError):
    """Somebody else holds the name, address, block or port; the message says who."""


class Exhausted(FabricError):
    """No address or block is free where this node may take one."""


class NotInSync(FabricError):
    """The snapshot of the datastore is incomplete; wait, never guess."""


class StoreError(FabricError):
    """etcd did not answer within its deadline, or refused the call."""


class Conflict(StoreError):
    """A guarded key had changed: nothing was written; read again and decide again."""


class Forbidden(StoreError):
    """etcd refused the call to our user: nothing was done, and another try cannot help."""


class Compacted(StoreError):
    """The revision a watch asked for has been compacted away: list again."""


class AgentError(FabricError):
    """The agent's socket did not answer."""


class SpeakerError(FabricError):
    """The speaker's socket did not answer, or the speaker refused the request."""


class LabError(FabricError):
    """A lab could not be built, entered or taken down."""


class DataplaneError(FabricError):
    """The kernel refused an operation.

    Args:
        what: the operation and its object, for example "route 10.0.0.0/26 via 192.0.2.1".
        code: the errno, positive.
        hint: the state we are in now and what to do, appended to the message.
    """

    def __init__(self, what: str, code: int, hint: str = "") -> None:
        self.what, self.code, self.hint = what, code, hint
        reason = f"{os.strerror(code)} [{errno.errorcode.get(code, code)}]"
        super().__init__("; ".join(filter(None, [f"{what}: {reason}", hint])))
