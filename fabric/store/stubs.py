"""etcd3's generated messages and stubs, imported without the warning that they draw."""

import warnings

with warnings.catch_warnings():
    # They build their descriptors in a way that protobuf has deprecated and still supports.
    warnings.simplefilter("ignore", DeprecationWarning)
    from etcd3.etcdrpc import kv_pb2 as kv_pb2
    from etcd3.etcdrpc import rpc_pb2 as rpc_pb2
    from etcd3.etcdrpc import rpc_pb2_grpc as rpc_pb2_grpc
