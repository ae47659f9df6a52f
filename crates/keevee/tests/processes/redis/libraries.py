"""Python's redis against a cluster: libraries.py forward|moved HOST:PORT..."""

import sys
import time

import redis
from redis.cluster import ClusterNode, RedisCluster

mode, addresses = sys.argv[1], [address.rsplit(":", 1) for address in sys.argv[2:]]
nodes = [ClusterNode(host, int(port)) for host, port in addresses]


def plain(host, port, protocol):
    client = redis.Redis(host, int(port), protocol=protocol, decode_responses=True)
    assert client.ping()
    client.flushdb()
    assert client.set("a", "1", ex=100) and client.get("a") == "1"
    assert 95 < client.ttl("a") <= 100
    assert client.set("a", "2", nx=True) is None
    assert client.incr("a", 41) == 42
    assert client.mget("a", "nope") == ["42", None]
    with client.pipeline(transaction=True) as pipe:
        assert pipe.set("{t}x", 1).incr("{t}x").expire("{t}x", 50).execute() == [True, 2, True]
    with client.pipeline(transaction=False) as pipe:
        for number in range(500):
            pipe.set(f"key-{number}", number)
        assert all(pipe.execute())
    with client.pipeline() as pipe:
        pipe.watch("{t}x")
        client.set("{t}x", 9)
        pipe.multi()
        pipe.incr("{t}x")
        try:
            pipe.execute()
            raise AssertionError("the watched key has changed")
        except redis.WatchError:
            pass
    assert sorted(client.scan_iter("key-*")) == sorted(f"key-{number}" for number in range(500))
    assert client.dbsize() == 502
    assert client.info()["redis_version"].startswith("7.0")
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert client.delete(*[f"key-{number}" for number in range(500)]) == 500
    assert client.getdel("a") == "42" and not client.exists("a")


def cluster(protocol, replicas):
    """Once more if a leadership moved meanwhile, as they do in the first seconds: over RESP3 this library takes MOVED for an
    error."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return cluster_once(protocol, replicas)
        except redis.ResponseError as error:
            if not str(error).startswith("MOVED") or time.monotonic() > deadline:
                raise


def until(client, holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        client.nodes_manager.initialize()


def cluster_once(protocol, replicas):
    client = RedisCluster(
        startup_nodes=nodes, protocol=protocol, decode_responses=True, read_from_replicas=replicas
    )
    for number in range(300):
        assert client.set(f"key-{number}", number)
    if not replicas:
        for number in range(300):
            assert client.get(f"key-{number}") == str(number)
        with client.pipeline() as pipe:
            for number in range(300):
                pipe.incr(f"key-{number}")
            assert pipe.execute() == list(range(1, 301))
        assert client.mset_nonatomic({"a": 1, "b": 2, "c": 3})
        assert client.mget_nonatomic("a", "b", "c") == ["1", "2", "3"]
        if mode == "moved":
            # Each node tells of the shards that it leads: while one is handed over, its keys are with either, or neither.
            until(client, lambda: client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 303)
            until(client, lambda: len(list(client.scan_iter("key-*"))) == 300)
    assert client.delete(*[f"key-{number}" for number in range(300)]) == 300
    assert client.flushdb(target_nodes=RedisCluster.PRIMARIES)


for protocol in (2, 3):
    if mode == "forward":
        for host, port in addresses:
            plain(host, port, protocol)
    cluster(protocol, False)
    cluster(protocol, True)
