"""Choose protobuf's pure-Python implementation, before anything imports protobuf.

etcd3's stubs were generated for an old protobuf: the C implementation refuses them at import, the
Python one takes them.

And keep gRPC's core from writing to stderr: what fails is raised, and said once.
"""

import os

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
