import json

import pytest

from fabric.errors import ConfigError
from fabric.model.base import Means
from fabric.model.felixconfiguration import FelixConfiguration, FelixConfigurationSpec
from fabric.model.fields import seconds
from fabric.model.wire import from_json, from_tree, to_json

FILTER = "must be 1 to 15 letters, digits, ':', '.', '_' and '-', the last of which may be '+', for any text"


def configuration(spec: object, name: str = "default") -> str:
    return json.dumps(
        {
            "kind": "FelixConfiguration",
            "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": name},
            "spec": spec,
        }
    )


def test_what_acts_has_an_attribute_and_no_default_is_written() -> None:
    read = from_json(configuration({"routeRefreshInterval": "1m30s"}))
    assert isinstance(read, FelixConfiguration)
    assert seconds(read.spec.route_refresh_interval or "") == 90
    assert (read.spec.ip_forwarding, read.spec.log_severity_screen) == (None, None)
    assert json.loads(to_json(read))["spec"] == {"routeRefreshInterval": "1m30s"}


def test_false_zero_and_an_empty_list_are_kept() -> None:
    spec = {"ipv6Support": False, "ipipMTU": 0, "failsafeInboundHostPorts": [], "logFilePath": ""}
    assert json.loads(to_json(from_json(configuration(spec))))["spec"] == spec


@pytest.mark.parametrize("word", ["DROP", "drop", "Drop"])
def test_words_are_taken_in_any_case(word: str) -> None:
    written = json.loads(to_json(from_json(configuration({"defaultEndpointToHostAction": word}))))
    assert written["spec"] == {"defaultEndpointToHostAction": "Drop"}


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (
            {"kubeNodePortRanges": ["30000:32767", "http"]},
            'spec.kubeNodePortRanges[1]: "http": must be a port or MIN:MAX, and not the name of a port',
        ),
        (
            {"externalNodesList": ["fd00::/64"]},
            'spec.externalNodesList[0]: "fd00::/64": must be an IPv4 prefix',
        ),
        (
            {"routeTableRange": {"min": 1, "max": 251}},
            "spec.routeTableRange.max: 251: must be at most 250",
        ),
        ({"bpfEnabled": "yes"}, 'spec.bpfEnabled: "yes": must be true or false'),
        ({"ipipMTU": "1440"}, 'spec.ipipMTU: "1440": must be a whole number; leave the quotes out'),
        (
            {"routeRefreshInterval": 90},
            "spec.routeRefreshInterval: 90: must be text; put it in quotes",
        ),
        (
            {"routeRefreshInterval": "90"},
            'spec.routeRefreshInterval: "90": must be a duration, such as 120s or 2m',
        ),
        ({"ipForwarding": "on"}, "spec.ipForwarding: \"on\": must be 'Enabled' or 'Disabled'"),
        ({"vxlanPort": 65536}, "spec.vxlanPort: 65536: must be at most 65535"),
        ({"vxlanPort": 0}, "spec.vxlanPort: 0: must be at least 1"),
        (
            {"iptablesMarkMask": 0x90000},
            "spec.iptablesMarkMask: 589824: must have at least 3 bits set: policy marks packets with them",
        ),
        ({"vxlanVNI": 16777216}, "spec.vxlanVNI: 16777216: must be at most 16777215"),
        (
            {"iptablesNATOutgoingInterfaceFilter": "a b"},
            f'spec.iptablesNATOutgoingInterfaceFilter: "a b": {FILTER}',
        ),
        (
            {"iptablesNATOutgoingInterfaceFilter": "e+h"},
            f'spec.iptablesNATOutgoingInterfaceFilter: "e+h": {FILTER}',
        ),
        (
            {"natPortRange": "http"},
            'spec.natPortRange: "http": must be a port or MIN:MAX, and not the name of a port',
        ),
        (
            {"natPortRange": ""},
            'spec.natPortRange: "": must be a port or MIN:MAX, and not the name of a port',
        ),
        ({"natOutgoingAddress": "fd00::1"}, 'spec.natOutgoingAddress: "fd00::1": must be an IPv4 address'),
        (
            {"failsafeOutboundHostPorts": [{"protocol": "ICMP", "port": 1}]},
            "spec.failsafeOutboundHostPorts[0].protocol: \"ICMP\": must be 'TCP', 'UDP' or 'SCTP'",
        ),
        (
            {"kubeNodePortRanges": list(range(1, 9))},
            "spec.kubeNodePortRanges: must have at most 7 entries, not 8",
        ),
        (
            {"routeTableRanges": [{"min": 9, "max": 1}]},
            "spec.routeTableRanges[0]: min must not be greater than max",
        ),
        (
            {"routeTableRange": {"min": 1, "max": 2}, "routeTableRanges": []},
            "spec.routeTableRange: excludes routeTableRanges",
        ),
        (
            {"nodeSelector": "all()"},
            'spec.nodeSelector: is not for "default", which says itself whose it is',
        ),
    ],
)
def test_a_wrong_type_is_refused(spec: object, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(configuration(spec))
    assert str(caught.value) == f"FelixConfiguration default: {rule}"


def test_a_typo_in_a_file_is_an_unknown_field() -> None:
    read = from_tree(json.loads(configuration({"ipvForwarding": "Enabled"})), unknown="forbid")
    assert isinstance(read, tuple)
    assert [str(problem) for problem in read] == [
        "spec.ipvForwarding: no such field; did you mean ipForwarding?"
    ]


def test_every_default_in_the_table_is_a_value_that_the_field_takes() -> None:
    refused = {}
    for name, field in FelixConfigurationSpec.model_fields.items():
        for note in field.metadata:
            if isinstance(note, Means) and not name.startswith(("failsafe", "bpfForce", "kubeNode")):
                read = from_tree(json.loads(configuration({field.alias: note.value})))
                if isinstance(read, tuple):
                    refused[name] = str(read[0])
    assert refused == {}
