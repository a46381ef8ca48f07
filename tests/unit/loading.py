"""What a file's text holds, for tests that are not about files."""

from fabric.errors import ConfigError
from fabric.model.base import Resource
from fabric.model.yaml import entries


def resources_in(text: str) -> list[Resource]:
    """Return the resources of `text`. Raises ConfigError with every mistake in it, a line each: `LINE: mistake`."""
    found = list(entries(text))
    mistakes = [
        f"{entry.line(problem.path)}: {problem}"
        for entry in found
        if not isinstance(entry.read, Resource)
        for problem in entry.read
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return [entry.read for entry in found if isinstance(entry.read, Resource)]
