import subprocess
import sys


def test_the_stubs_import_with_the_protobuf_that_is_installed() -> None:
    """In a process of its own, where nothing has imported protobuf yet; its warnings are errors too."""
    code = """
import fabric.store.etcd
from google.protobuf.internal import api_implementation
print(api_implementation.Type())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("python\n", "")
