import json

import pytest

from fabric.errors import ConfigError
from fabric.model.ipamconfiguration import IPAMConfiguration, resource_tree, stored_tree
from fabric.model.wire import from_json, from_tree


def configuration(spec: object) -> IPAMConfiguration:
    value = {
        "kind": "IPAMConfiguration",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "default"},
        "spec": spec,
    }
    read = from_json(json.dumps(value))
    assert isinstance(read, IPAMConfiguration)
    return read


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        ({}, {"auto_allocate_blocks": True}),
        ({"strictAffinity": True, "autoAllocateBlocks": False}, {"strict_affinity": True}),
        (
            {"strictAffinity": True, "maxBlocksPerHost": 4, "ipCooldownSeconds": 60},
            {
                "strict_affinity": True,
                "maxBlocksPerHost": 4,
                "auto_allocate_blocks": True,
                "ipCooldownSeconds": 60,
            },
        ),
        (
            {"kubeVirtVMAddressPersistence": "Enabled"},
            {"auto_allocate_blocks": True, "kubeVirtVMAddressPersistence": "Enabled"},
        ),
        ({"later": {"a": 0}, "zero": 0}, {"auto_allocate_blocks": True, "later": {"a": 0}, "zero": 0}),
    ],
)
def test_it_is_stored_under_other_names_and_without_what_is_zero(
    spec: object, stored: dict[str, object]
) -> None:
    assert stored_tree(configuration(spec).spec) == stored
    again = from_tree(resource_tree(stored))
    assert isinstance(again, IPAMConfiguration)
    assert stored_tree(again.spec) == stored


def test_what_is_absent_in_the_datastore_is_false() -> None:
    read = from_tree(resource_tree({"strict_affinity": True}))
    assert isinstance(read, IPAMConfiguration)
    assert read.spec.auto_allocate_blocks is False


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"autoAllocateBlocks": False}, "spec.autoAllocateBlocks: false: needs strictAffinity: true"),
        (
            {"strictAffinity": True, "maxBlocksPerHost": 1_000_001},
            "spec.maxBlocksPerHost: 1000001: must be at most 1000000",
        ),
        ({"ipCooldownSeconds": 1201}, "spec.ipCooldownSeconds: 1201: must be at most 1200"),
    ],
)
def test_settings_that_leave_no_address_to_give_are_refused(spec: object, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(spec)
    assert str(caught.value) == f"IPAMConfiguration default: {rule}"


def test_anything_but_an_object_in_the_datastore_is_refused() -> None:
    with pytest.raises(ConfigError, match="the stored IPAM configuration is no JSON object"):
        resource_tree([])  # type: ignore[arg-type]
