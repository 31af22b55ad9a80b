"""`ray up ray_cluster.yaml` and `ray down` against a cloud of moto's, in network namespaces with no way out.

Each instance is a host of namespaces (support/hosts.py). The file is as shipped, its marked values filled in, but for
three things: addresses inside the cloud are used (moto's public ones are real ones of others), `pip install` installs
nothing (the packages are there already), and the check of GPUs is left out (there are none). Left out too: rights,
quotas, prices, and what real instances need to boot.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.cloud import Cloud
from support.cluster_file import fill
from support.hosts import PROJECT, Host, Network, checkout, lacking, wait_until
from support.islands import write_data, write_space

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(lacking()), reason=lacking())]

IMAGE, PROFILE, BUCKET = "ami-0123456789abcdef0", "deftx-sweeps", "a-bucket"
REGION = "eu-central-1"
ALSO = {"~/deftx-sweeps/tiny.yaml": "tiny.yaml", "~/deftx-sweeps/data": "data"}
"""What a user who has a space and data of their own adds to `file_mounts`."""
MAKE_PROFILE = f"""
import boto3
iam = boto3.client("iam", region_name="{REGION}")
iam.create_instance_profile(InstanceProfileName="{PROFILE}")
iam.create_role(RoleName="{PROFILE}", AssumeRolePolicyDocument="{{}}")
iam.add_role_to_instance_profile(InstanceProfileName="{PROFILE}", RoleName="{PROFILE}")
boto3.client("s3").create_bucket(Bucket="{BUCKET}", CreateBucketConfiguration=dict(LocationConstraint="{REGION}"))
"""
JOB = (
    "ray job submit --address http://127.0.0.1:8265 --submission-id tiny --no-wait -- "
    "python -m orchestrator.sweep ~/deftx-sweeps/tiny.yaml --data-root ~/deftx-sweeps/data"
)
LIST = f"""
import boto3, json
ec2 = boto3.client("ec2", region_name="{REGION}")
found = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
print(json.dumps({{"instances": found, "volumes": ec2.describe_volumes()["Volumes"]}}, default=str))
"""
WANT_GPUS = """
import ray
from ray.autoscaler.sdk import request_resources
ray.init("auto", log_to_driver=False)
request_resources(bundles=[{{"GPU": 8}}] * {count})
"""


class Account:
    """What the cloud says that there is."""

    def __init__(self, host: Host) -> None:
        told = json.loads(python(host, LIST).splitlines()[-1])
        self.volumes: dict[str, dict[str, Any]] = {volume["VolumeId"]: volume for volume in told["volumes"]}
        self.instances: list[dict[str, Any]] = told["instances"]

    def state(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.instances if one["State"]["Name"] == name]

    def of_type(self, node_type: str) -> list[dict[str, Any]]:
        return [one for one in self.state("running") if tags(one)["ray-user-node-type"] == node_type]

    def disks(self, instance: dict[str, Any]) -> list[tuple[int, str]]:
        """Size in GB and type of each disk."""
        ids = [mapping["Ebs"]["VolumeId"] for mapping in instance["BlockDeviceMappings"]]
        return [(self.volumes[one]["Size"], self.volumes[one]["VolumeType"]) for one in ids]


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def python(host: Host, code: str) -> str:
    return host.run(f"~/venv/bin/python - <<'EOF'\n{code}\nEOF", 120)


def test_up_grown_and_down(tmp_path: Path) -> None:
    with Network("172.31.0.0/16") as network, Host(tmp_path / "laptop", network, "laptop", "172.31.255.1") as laptop:

        def instance(name: str, address: str, environment: dict[str, str]) -> Host:
            (key,) = (laptop.home / ".ssh").glob("*.pem")
            public = subprocess.run(["ssh-keygen", "-y", "-f", key], check=True, stdout=subprocess.PIPE, text=True)
            return Host(tmp_path / name, network, name, address, keys=public.stdout, environment=environment)

        with Cloud(laptop, instance) as cloud:
            laptop.environment |= cloud.environment
            python(laptop, MAKE_PROFILE)
            write_data(checkout(laptop) / "data")
            write_space(laptop.home / PROJECT / "tiny.yaml", resources={"dense": {"gpu": 1}})
            config = fill(
                laptop.home / PROJECT / "ray_cluster.yaml",
                {"REPLACE-region": REGION, "REPLACE-ami": IMAGE, "REPLACE-profile": PROFILE, "REPLACE-bucket": BUCKET},
                {"provider": {"use_internal_ips": True}, "worker_setup_commands": [], "file_mounts": ALSO},
            )
            up_and_down(laptop, cloud, config)


def up_and_down(laptop: Host, cloud: Cloud, config: dict[str, Any]) -> None:
    ray = "cd ~/deftx-sweeps && . ~/venv/bin/activate && ray"
    laptop.run(f"{ray} get-auth-token --generate")
    laptop.run(f"{ray} up -y ray_cluster.yaml", 240)
    account = Account(laptop)
    (head,) = account.state("running")
    check(account, head, config, "head", spot=False)
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{PROFILE}")

    host = cloud.instances[head["InstanceId"]]
    host.run(JOB)
    grown(laptop, cloud, host, "a100_worker", config, spot=True)
    assert [one["spot"] for one in cloud.events("launched")] == [False, True]
    wait_until(lambda: "RUNNING" not in host.run("ray job status tiny"), 90, lambda: host.run("ray job logs tiny"))
    assert "Ray gave a GPU to a trial there, and torch sees none" in host.run("ray job logs tiny")

    cloud.refuse_spot()
    python(host, WANT_GPUS.format(count=2))
    grown(laptop, cloud, host, "a100_worker_on_demand", config, spot=False)
    assert {one["type"] for one in cloud.events("refused")} == {"p4d.24xlarge"}

    laptop.run(f"{ray} down -y ray_cluster.yaml", 120)
    left = Account(laptop)
    assert len(left.state("terminated")) == len(left.instances) == 3
    assert not left.volumes
    wait_until(lambda: not cloud.instances, 60)
    assert laptop.processes() == [one for one in laptop.processes() if "support.cloud" in one]


def grown(laptop: Host, cloud: Cloud, head: Host, node_type: str, config: dict[str, Any], *, spot: bool) -> None:
    """That there comes to be one node of this type, as the file has it, and that it joins Ray."""
    wait_until(lambda: Account(laptop).of_type(node_type), 150, head.logs)
    account = Account(laptop)
    (worker,) = account.of_type(node_type)
    check(account, worker, config, node_type, spot=spot)
    count = len(account.state("running"))
    alive = "import ray; ray.init('auto', log_to_driver=False); print('alive', sum(n['Alive'] for n in ray.nodes()))"
    wait_until(lambda: f"alive {count}" in python(head, alive), 150, lambda: head.logs() + python(head, alive))


def check(account: Account, instance: dict[str, Any], config: dict[str, Any], node_type: str, *, spot: bool) -> None:
    """That an instance is as the cluster file has its node type."""
    wanted = config["available_node_types"][node_type]["node_config"]
    labels = tags(instance)
    assert labels["ray-cluster-name"] == config["cluster_name"]
    assert labels["ray-user-node-type"] == node_type
    assert labels["ray-node-type"] == ("head" if node_type == "head" else "worker")
    assert (instance["ImageId"], instance["InstanceType"]) == (IMAGE, wanted["InstanceType"])
    disks = [mapping["Ebs"] for mapping in wanted["BlockDeviceMappings"]]
    assert account.disks(instance) == [(disk["VolumeSize"], disk["VolumeType"]) for disk in disks]
    assert instance.get("InstanceLifecycle") == ("spot" if spot else None)
