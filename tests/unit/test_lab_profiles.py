"""What an image's name starts, what cannot run in namespaces and why, and what users add."""

import subprocess
from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.lab.profiles import BESIDE, Profile, Save, beside, builtin, repository
from fabric.lab.topology import Node


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ("alpine", "alpine"),
        ("docker.io/library/alpine:3.20", "alpine"),
        ("quay.io/frrouting/frr:8.4.1", "quay.io/frrouting/frr"),
        ("localhost:5000/frr@sha256:00", "localhost:5000/frr"),
    ],
)
def test_repository(image: str, want: str) -> None:
    assert repository(image) == want


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ("alpine:3", "plain"),
        ("ubuntu:22.04", "plain"),
        ("praqma/network-multitool:latest", "plain"),
        ("wbitt/network-multitool:3.22.2", "plain"),
        ("ghcr.io/nicolaka/netshoot", "plain"),
        ("fabricctl/node", "node"),
        ("quay.io/frrouting/frr:containerlab-10.7.1", "frr"),
        ("ghcr.io/srl-labs/bird:2.13", "bird"),
        ("pierky/bird", "bird-debian"),
        ("osrg/gobgp:latest", "gobgp"),
        ("quay.io/coreos/etcd:v3.4.33", "etcd"),
        ("networkstatic/iperf3", "iperf3"),
        ("nginx:stable-alpine", None),
    ],
)
def test_common_images_have_a_profile(image: str, want: str | None) -> None:
    profile = builtin().of(image)
    assert (profile and profile.name) == want
    assert builtin().refusal("linux", image) == ""


@pytest.mark.parametrize(
    ("image", "entrypoint", "cmd", "want"),
    [
        ("alpine", "", "", ""),
        ("alpine", "", "sleep 9", "sleep 9"),
        ("networkstatic/iperf3", "", "", "iperf3 -s"),
        ("networkstatic/iperf3", "", "-c 10.0.0.1", "iperf3 -c 10.0.0.1"),
        ("networkstatic/iperf3", "sh", "", "sh"),
        ("networkstatic/iperf3", "sh -c", "id", "sh -c id"),
        ("quay.io/coreos/etcd", "", "etcd --name a", "etcd --name a"),
        ("nobody/knows", "a", "b", "a b"),
        ("nobody/knows", "", "b", "b"),
    ],
)
def test_entrypoint_and_cmd_go_together_as_in_docker(
    image: str, entrypoint: str, cmd: str, want: str
) -> None:
    node = Node(
        "a",
        image,
        entrypoint=tuple(entrypoint.split()),
        cmd=tuple(cmd.split()),
        profile=builtin().of(image),
    )
    assert " ".join(node.command) == want


@pytest.mark.parametrize(
    ("kind", "image", "want"),
    [
        ("nokia_srlinux", "ghcr.io/nokia/srlinux", "kind nokia_srlinux needs an image of its maker's"),
        (
            "linux",
            "ghcr.io/nokia/srlinux:24.10",
            "image ghcr.io/nokia/srlinux:24.10 needs an image of its maker's",
        ),
        ("linux", "ceos:4.32.0F", "image ceos:4.32.0F needs an image of its maker's"),
        ("linux", "vrnetlab/vr-sros:23", "image vrnetlab/vr-sros:23 is a virtual machine"),
        ("linux", "registry.example/vrnetlab/nokia_sros", "is a virtual machine, which needs a hypervisor"),
        ("juniper_vmx", "x", "kind juniper_vmx is a virtual machine"),
        ("bridge", "", "kind bridge stands in the host's network namespace"),
        ("host", "", "kind host stands in the host's network namespace"),
        ("ext-container", "", "kind ext-container is a container that runs already"),
        ("linux", "alpine", ""),
    ],
)
def test_what_namespaces_cannot_run_is_known_with_its_reason(kind: str, image: str, want: str) -> None:
    assert want in builtin().refusal(kind, image)
    assert bool(builtin().refusal(kind, image)) == bool(want)


def test_a_profile_without_anything_is_plain_and_the_others_say_what_they_need() -> None:
    profiles = builtin().profiles
    for name in ("plain", "node"):
        assert profiles[name] == Profile(name, profiles[name].images, sysctls=profiles[name].sysctls)
    for name in ("frr", "bird", "bird-debian", "gobgp"):
        assert profiles[name].config
        assert profiles[name].daemons
        assert profiles[name].save
    images = [image for profile in profiles.values() for image in profile.images]
    assert len(images) == len(set(images))
    assert [image for image in images if repository(image) != image] == []


@pytest.mark.parametrize("name", list(builtin().profiles))
def test_the_scripts_of_a_profile_are_sound_shell(name: str) -> None:
    profile = builtin().profiles[name]
    for script in (profile.start, profile.ready):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_users_add_profiles_beside_the_topology(tmp_path: Path) -> None:
    (tmp_path / BESIDE).write_text("""\
profiles:
  frr:
    images: [registry.example/frr]
    save: {file: running.conf, command: [vtysh, -c, show running-config]}
  echo:
    images: [alpine]
    entrypoint: [echo]
    cmd: [hello, world]
refused:
  - {images: [secret/*], why: is not for labs}
""")
    profiles, frr = beside(tmp_path), builtin().profiles["frr"]
    mine = profiles.of("registry.example/frr:1")
    assert mine
    assert (mine.name, mine.start, mine.config) == ("frr", frr.start, frr.config)
    assert mine.save == Save("running.conf", ("vtysh", "-c", "show running-config"))
    assert profiles.of("quay.io/frrouting/frr") == mine
    assert profiles.of("alpine:3") == Profile(
        "echo", ("alpine",), entrypoint=("echo",), cmd=("hello", "world")
    )
    assert profiles.of("debian") == builtin().of("debian")
    assert profiles.refusal("linux", "secret/thing:1") == "image secret/thing:1 is not for labs"
    assert profiles.refusal("bridge", "").startswith("kind bridge stands")


def test_an_image_that_a_user_lists_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / BESIDE).write_text("profiles: {mine: {images: [vrnetlab/just-tools]}}\n")
    assert beside(tmp_path).refusal("linux", "vrnetlab/just-tools:1") == ""


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            "profiles:\n  x:\n    image: [a]\n",
            '3: profiles.x.image: is no field here (did you mean "images"?)',
        ),
        ("profiles:\n  x: {}\n", "2: profiles.x.images: is required"),
        ("profiles: {x: {images: []}}\n", "1: profiles.x.images: must have at least 1"),
        ("profiles: {x: {images: [a], save: {file: f}}}", "1: profiles.x.save.command: is required"),
        (
            "profiles: {x: {images: [a], save: {file: f, command: [c], x: y}}}",
            "1: profiles.x.save.x: is no field here; remove it",
        ),
        *(
            (f"profiles: {{x: {{images: [a], {fields}}}}}", f"1: profiles.x.{place}: {why}")
            for fields, place, why in (
                ("scratch: [/run/../x]", "scratch.0", '"/run/../x": write it from / on, without ".."'),
                ("config: etc/x", "config", '"etc/x": write it from / on'),
                ("files: {/etc/../x: y}", "files./etc/../x", '"/etc/../x": write it from / on'),
                (
                    "sysctls: {kernel.panic: '1'}",
                    "sysctls.kernel.panic",
                    "would change the host, not the node",
                ),
                ("sysctls: {net/../x: '1'}", "sysctls.net/../x", "is no name of a sysctl"),
            )
        ),
        ("refused: [{images: [a]}]", "1: refused.0.why: is required"),
        ("x: [", "1: not YAML"),
    ],
)
def test_what_is_wrong_with_a_users_profiles_is_told_with_its_line(
    text: str, want: str, tmp_path: Path
) -> None:
    (tmp_path / BESIDE).write_text(text)
    with pytest.raises(ConfigError) as refusal:
        beside(tmp_path)
    assert f"{tmp_path / BESIDE}:{want}" in str(refusal.value)
