"""A cluster of two nodes on the loopback, for tests: prints its address; for every line that it reads a node is killed -9."""

from __future__ import annotations

import os
import sys
import warnings

warnings.simplefilter("ignore")
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

from ray.cluster_utils import Cluster  # noqa: E402  # Ray looks at these when it is imported

if __name__ == "__main__":
    each = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    others = [cluster.add_node(**each)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(others.pop(), allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()
