"""import-linter refuses a package and its child in one contract, so modules are listed; none may be missing."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS, *OTHERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def modules(package: str) -> set[str]:
    """Every module and package directly in `package`."""
    found = (p for p in (ROOT / package).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists())
    return {f"{package}.{p.stem}" for p in found if p.stem != "__init__"}


def listed() -> set[str]:
    return {name.strip(" ()") for layer in LAYERS["layers"] for name in layer.replace("|", ":").split(":")}


@pytest.mark.parametrize("package", ["bgp", "policy", "fabric"])
def test_every_module_has_its_layer(package: str) -> None:
    assert modules(package) - listed() == set()


@pytest.mark.parametrize("package", ["bgp", "policy"])
def test_every_pure_module_is_held_to_purity(package: str) -> None:
    [purity] = [c for c in OTHERS if c["name"] == "The pure packages reach no outside thing"]
    assert modules(package) - {"bgp.speaker"} - set(purity["source_modules"]) == set()


@pytest.mark.parametrize(
    ("library", "owner"), [("pyroute2", "fabric.kernel"), ("iptc", "fabric.kernel"), ("grpc", "fabric.store")]
)
def test_a_library_is_forbidden_to_everybody_but_its_owner(library: str, owner: str) -> None:
    [contract] = [c for c in OTHERS if library in c.get("forbidden_modules", ())]
    assert {"bgp", "policy", *modules("fabric")} - set(contract["source_modules"]) == {owner}


def test_the_layers_name_nothing_that_is_gone() -> None:
    here = modules("bgp") | modules("policy") | modules("fabric") | {"bgp.speaker"}
    assert {name for name in listed() if name.count(".") == 1} <= here
