import subprocess
import sys

import pytest

from fabric.errors import ConfigError
from fabric.model.base import Unknown
from fabric.model.ippool import IPPool
from fabric.model.kinds import KINDS, lookup, named, resource_class
from fabric.model.workloadendpoint import WorkloadEndpoint


@pytest.mark.parametrize("word", ["IPPool", "ippool", "ippools", "IPPOOLS", "pool", "ipp"])
def test_a_kind_answers_to_its_name_plural_and_aliases(word: str) -> None:
    assert lookup(word).cls is IPPool


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("gnp", "GlobalNetworkPolicy"),
        ("pol", "NetworkPolicy"),
        ("sknp", "StagedKubernetesNetworkPolicy"),
        ("spol", "StagedNetworkPolicy"),
        ("bf", "BGPFilter"),
        ("gnetsets", "GlobalNetworkSet"),
        ("reservations", "IPReservation"),
        ("nodestatus", "CalicoNodeStatus"),
        ("kubecontrollersconfig", "KubeControllersConfiguration"),
    ],
)
def test_calicoctls_short_words_mean_what_they_mean_there(word: str, kind: str) -> None:
    assert lookup(word).name == kind


def test_an_unknown_word_is_answered_with_the_one_that_is_close_or_with_where_they_are() -> None:
    with pytest.raises(ConfigError, match=r'^kind "IPPol" is not known; did you mean ippool\?$'):
        lookup("IPPol")
    with pytest.raises(
        ConfigError, match=r'^kind "xyz" is not known; `fabricctl get --help` lists the kinds$'
    ):
        lookup("xyz")


@pytest.mark.parametrize(
    ("word", "cure"),
    [("np,ippool", "one kind at a time"), ("np/web", "give `np web`"), ("pool/", "give `pool NAME`")],
)
def test_a_word_that_is_more_than_a_kind_is_answered_with_how_to_say_it(word: str, cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        lookup(word)


def test_names_lead_to_the_class() -> None:
    assert (named("WorkloadEndpoint"), named("workloadendpoint")) == (lookup("wep"), None)
    assert resource_class("WorkloadEndpoint") is WorkloadEndpoint
    assert resource_class("LiveMigration") is resource_class("Never seen") is Unknown
    assert resource_class("IPPool", "example.org/v1") is Unknown


def test_no_word_means_two_kinds() -> None:
    words = [word for kind in KINDS for word in {kind.name.lower(), kind.plural, *kind.aliases}]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.cls is not Unknown], ids=lambda kind: kind.name
)
def test_a_class_says_the_kind_it_is_registered_as(kind: object) -> None:
    assert kind in KINDS
    registered = next(k for k in KINDS if k is kind)
    assert registered.cls.model_fields["kind"].default == registered.name


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, fabric.model; sys.exit('pydantic' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
