"""`rbee nodes check` over SSH, on a node whose NVIDIA driver is played by `tests/doubles/nvml`."""

from __future__ import annotations

import io
import tarfile

import pynvml
import pytest

from tests.doubles import nvml
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, until_sshd_answers

pytestmark = pytest.mark.container


def test_the_gpus_of_a_bare_node_are_told_with_what_mends_them(rbee: Rbee, shared_node: ContainerNode) -> None:
    """The library is found by the node's dynamic linker, and asked by the node's own Python."""
    node, packed = shared_node, io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(nvml.library(), "usr/lib/libnvidia-ml.so.1")
        archive.add(pynvml.__file__, "usr/lib/python3/dist-packages/pynvml.py")
        archive.add(nvml.fixture("one_lost"), "etc/nvml-double")
    packed.seek(0)
    node.put_archive("/", packed)
    node.exec("chmod a+r /etc/nvml-double; chmod a+rx /usr/lib/libnvidia-ml.so.1; ldconfig")
    node.exec("echo 'SetEnv NVML_DOUBLE=/etc/nvml-double' >> /etc/ssh/sshd_config; kill -HUP $(pgrep -o -x sshd)")
    until_sshd_answers(node.host, node.port)
    rbee.inventory.write_text(node.inventory())
    findings = {row["title"]: row for row in rbee("nodes", "check", node.name, "--json").json()}
    assert findings["GPUs"]["detail"].startswith("CUDA1 NVIDIA A100-SXM4-40GB (42300 of 42949 MB free)")
    assert (findings["GPU 0"]["level"], findings["GPU 1 ECC"]["level"]) == ("warn", "warn")
    assert "has fallen off the bus" in findings["GPU 0"]["detail"]
    assert "reboot" in findings["GPU 0"]["fix"]
