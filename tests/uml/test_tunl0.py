"""The contract of tunnels where the kernel has IPIP: what tests/contract/test_tunnels.py asks of tunl0."""

import pytest

from tests.contract.test_tunnels import *  # noqa: F403

pytestmark = pytest.mark.inside
