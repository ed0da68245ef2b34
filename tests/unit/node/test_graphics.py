"""What a node says of its render nodes and drivers, what its GPUs can be used by, and what keeps one idle."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.node import gpu_backends, graphics
from rbee.node.diagnosis import ConnectionFacts, findings
from rbee.node.graphics import Card, Graphics, Icd
from rbee.node.probe import Gpu, Probe, parse, script
from rbee_remote.protocol.gpus import GpuReport, GpuSeen, GpuSilent
from tests.patience import PATIENCE_S

HEAD = b"system=Linux\nhome=/home/bee/.rbee/node\nuser=bee\nos=Debian GNU/Linux 12 (bookworm)\n"
RX = Card("renderD128", "amd", "AMD GPU 744c", "amdgpu", "yes", "render", 25753, 25725, "gfx1100")
ARC = Card("renderD129", "intel", "Intel GPU 56a0", "i915", "yes", "render")
RADEON, ANV = Icd("radeon_icd.x86_64.json", "amd"), Icd("intel_icd.x86_64.json", "intel")
NVIDIA_ICD, LAVAPIPE = Icd("nvidia_icd.json", "nvidia"), Icd("lvp_icd.x86_64.json", "")
NVIDIA = Gpu("nvidia", "NVIDIA L4", 24000, 23000, "550.54.15")
ROCM = Graphics(kfd="yes", kfd_group="render", libraries=frozenset({"libamdhip64.so.6"}))


def node(*cards: Card, icds: tuple[Icd, ...] = (), base: Graphics = graphics.NONE, **probe: object) -> Probe:
    drawn = replace(base, cards=cards, icds=icds)
    return replace(parse(HEAD), graphics=drawn, **probe)  # type: ignore[arg-type]


def test_what_the_script_says_is_understood() -> None:
    found = parse(
        HEAD + b"render=renderD128|amdgpu|yes|render|0x1002|0x744c|25753026560|28000256|\n"
        b"render=renderD129|i915|no|render|0x8086|0x56a0|||\n"
        b"render=renderD130|virtio-pci|yes|render|0x1af4|0x1050|||\n"
        b"kfd=no|render\nkfd_node=|0\nkfd_node=128|110000\n"
        b"gpu_library=libamdhip64.so.6\ngpu_library=libvulkan.so.1\ngpu_library=lib; rm -rf\n"
        b"icd=radeon_icd.x86_64.json|yes\nicd=lvp_icd.x86_64.json|yes\nicd=nvidia_icd.json|no\n"
    )
    assert found.graphics == Graphics(
        (RX, replace(ARC, access="no")),
        (RADEON, LAVAPIPE, replace(NVIDIA_ICD, works=False)),
        "no",
        "render",
        frozenset({"libamdhip64.so.6", "libvulkan.so.1"}),
    )
    assert found.gpus == (
        Gpu("amd", "AMD GPU 744c", 25753, 25725, "amdgpu"),
        Gpu("intel", "Intel GPU 56a0", 0, 0, "i915"),
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [("90010", "gfx90a"), ("90402", "gfx942"), ("110000", "gfx1100"), ("100300", "gfx1030"), ("120001", "gfx1201")],
)
def test_the_kernels_number_for_an_architecture(version: str, expected: str) -> None:
    text = f"render=renderD128|amdgpu|yes|render|0x1002|0x1|||\nkfd_node=128|{version}\n"
    assert parse(HEAD + text.encode()).graphics.cards[0].architecture == expected


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (node(), ()),
        (node(RX), ()),
        (node(RX, icds=(RADEON,)), ("vulkan",)),
        (node(RX, icds=(ANV, LAVAPIPE)), ()),
        (node(RX, icds=(replace(RADEON, works=False),)), ()),
        (node(replace(RX, access="no"), icds=(RADEON,)), ()),
        (node(RX, ARC, icds=(ANV,)), ("vulkan",)),
        (node(RX, base=ROCM), ("rocm",)),
        (node(RX, base=ROCM, icds=(RADEON,)), ("rocm", "vulkan")),
        (node(RX, base=replace(ROCM, kfd="no"), icds=(RADEON,)), ("vulkan",)),
        (node(RX, base=replace(ROCM, libraries=frozenset())), ()),
        (node(replace(RX, architecture=""), base=ROCM), ()),
        (node(gpus=(NVIDIA,)), ("cuda",)),
        (node(gpus=(NVIDIA,), icds=(NVIDIA_ICD,)), ("cuda", "vulkan")),
        (node(gpus=(NVIDIA,), icds=(replace(NVIDIA_ICD, works=False),)), ("cuda",)),
        (node(icds=(NVIDIA_ICD, LAVAPIPE)), ()),
    ],
)
def test_by_what_a_nodes_gpus_can_be_used(probe: Probe, expected: tuple[str, ...]) -> None:
    assert gpu_backends.usable(probe) == expected


@pytest.mark.parametrize(
    ("probe", "why", "fix"),
    [
        (node(replace(RX, driver="")), "no driver for it", "modprobe amdgpu"),
        (node(replace(ARC, driver="")), "no driver for it", "modprobe i915"),
        (node(replace(RX, access="absent")), "no /dev/dri/renderD128 here", "--device /dev/dri --device /dev/kfd"),
        (node(replace(ARC, access="absent")), "no /dev/dri/renderD129 here", "with --device /dev/dri"),
        (node(replace(RX, access="no"), icds=(RADEON,)), "bee may not open /dev/dri", "usermod -aG render bee"),
        (node(replace(RX, access="no", group="video")), "may not open", "usermod -aG video bee"),
        (node(replace(RX, access="no", group="root")), "may not open", "setfacl -m u:bee:rw /dev/dri/renderD128"),
        (node(RX), "no driver for Vulkan", "apt install mesa-vulkan-drivers"),
        (node(RX, icds=(LAVAPIPE,)), "no driver for Vulkan", "apt install mesa-vulkan-drivers"),
        (node(RX, icds=(replace(RADEON, works=False),)), "the library of radeon_icd.x86_64.json", "apt install mesa"),
        (node(RX, os_release="Fedora Linux 42"), "no driver", "dnf install mesa-vulkan-drivers"),
        (node(RX, os_release="Arch Linux"), "no driver", "pacman -S vulkan-radeon"),
        (node(ARC, os_release="Alpine Linux v3.20"), "no driver", "apk add mesa-vulkan-intel"),
        (node(ARC, os_release="openSUSE Leap 15.6"), "no driver", "zypper install libvulkan_intel"),
        (node(ARC, os_release="Plan 9"), "no driver", "Mesa's drivers"),
    ],
)
def test_what_keeps_a_gpu_idle_has_its_fix(probe: Probe, why: str, fix: str) -> None:
    (found,) = gpu_backends.idle(probe)
    assert why in found.why
    assert fix in found.fix
    told = [finding for finding in findings(probe, ConnectionFacts(local=True, forwarding=None)) if finding.fix]
    assert any(finding.title == "idle GPU" and fix in finding.fix for finding in told)


def test_an_amd_gpu_that_the_user_may_not_open_is_named_once() -> None:
    """The node's report knows it by its number, the probe by its name and the groups that mend it."""
    probe = node(replace(RX, access="no"), icds=(RADEON,), base=replace(ROCM, kfd="no", kfd_group="video"))
    facts = ConnectionFacts(local=True, forwarding=None)
    for path in ("/dev/kfd", "/dev/dri/renderD128"):
        report = GpuReport(silent=(GpuSilent(0, "permission", path), GpuSilent(1, "permission", "another")))
        warned = [each for each in findings(probe, facts, report) if "GPU" in each.title and each.level == "warn"]
        assert [each.title for each in warned] == ["GPU 1", "idle GPU"]
        assert "/dev/kfd and /dev/dri/renderD128" in warned[1].detail
        assert "usermod -aG render,video bee" in warned[1].fix
    usable = node(RX, icds=(RADEON,), base=replace(ROCM, kfd="no"))
    report = GpuReport(silent=(GpuSilent(0, "permission", "/dev/kfd"),))
    assert [each.title for each in findings(usable, facts, report) if each.level == "warn" and "GPU" in each.title] == [
        "GPU 0"
    ], "by Vulkan it computes; that ROCm may not is worth knowing"


def test_what_a_node_says_of_a_driver_that_hung_stands_for_what_the_probe_saw() -> None:
    facts = ConnectionFacts(local=True, forwarding=None)
    probe = node(nvidia_hangs=True)
    card = GpuSeen("CUDA0", 0, "H100", "nvidia", 80000, 79000)
    for report, expected in (
        (None, ["idle GPU"]),
        (GpuReport(reason="timeout"), ["NVIDIA driver"]),
        (GpuReport(gpus=(card,), log_read=True), []),
    ):
        told = [each.title for each in findings(probe, facts, report) if each.title in ("idle GPU", "NVIDIA driver")]
        assert told == expected


@pytest.mark.parametrize(
    "probe",
    [
        node(),
        node(RX, icds=(RADEON,)),
        node(RX, base=ROCM),
        node(Card("renderD128", "nvidia", "NVIDIA GPU 2684", "nvidia", "no", "render"), gpus=(NVIDIA,)),
    ],
)
def test_a_gpu_that_something_can_use_is_not_idle(probe: Probe) -> None:
    assert gpu_backends.idle(probe) == []


def test_the_doctor_names_the_backends() -> None:
    probe = node(RX, base=ROCM, icds=(RADEON,))
    (found,) = [
        each.detail
        for each in findings(probe, ConnectionFacts(local=True, forwarding=None))
        if each.title == "GPU backends"
    ]
    assert found == "rocm (gfx1100), vulkan (rbee has the loader)"
    own = replace(probe, graphics=replace(probe.graphics, libraries=frozenset({"libvulkan.so.1"})))
    assert list(gpu_backends.summary(own)) == ["vulkan (the system has the loader)"]


KEYS = [b"render", b"kfd", b"kfd_node", b"icd", b"gpu_library", b"nvidia", b"rocm"]
PIECES = st.sampled_from(
    [b"|", b"renderD128", b"0x1002", b"yes", b"no", b"amdgpu", b"; reboot", b"128|110000", b"9" * 20]
)


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.lists(PIECES, max_size=12) | st.just([b"\xff"])), max_size=12))
def test_whatever_a_node_says_commands_to_copy_hold_none_of_its_own(lines: list[tuple[bytes, list[bytes]]]) -> None:
    found = parse(HEAD + b"\n".join(key + b"=" + b"".join(value) for key, value in lines))
    assert "reboot" not in " ".join(idle.fix for idle in gpu_backends.idle(found))
    assert set(gpu_backends.usable(found)) <= set(gpu_backends.ORDER)


# --- the script itself --------------------------------------------------------------------------------------------


def put(root: Path, files: dict[str, str], mode: int = 0o644) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(mode)


def _run(root: Path) -> Probe:
    text = script(None).replace(graphics.script(), graphics.script(str(root)))
    env = {"HOME": str(root / "home"), "PATH": f"{root}/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/sh"], input=text.encode(), capture_output=True, env=env, timeout=PATIENCE_S, check=True
    )
    assert done.stderr == b""
    return parse(done.stdout)


def test_the_script_reads_what_the_kernel_and_the_system_say(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    device = "sys/devices/0000:03:00.0"
    put(tmp_path, {f"{device}/vendor": "0x1002\n", f"{device}/device": "0x744c\n"})
    put(tmp_path, {f"{device}/mem_info_vram_total": "25753026560\n", f"{device}/mem_info_vram_used": "28000256\n"})
    put(tmp_path, {"sys/bus/pci/drivers/amdgpu/bind": "", "dev/dri/renderD128": ""})
    (tmp_path / device / "driver").symlink_to(tmp_path / "sys/bus/pci/drivers/amdgpu")
    drm = tmp_path / "sys/class/drm/renderD128"
    drm.mkdir(parents=True)
    (drm / "device").symlink_to(tmp_path / device)
    hidden = tmp_path / "sys/class/drm/renderD129"
    put(hidden, {"device/vendor": "0x8086\n", "device/device": "0x56a0\n"})
    topology = "sys/class/kfd/kfd/topology/nodes"
    put(tmp_path, {f"{topology}/0/properties": "cpu_cores_count 16\ngfx_target_version 0\ndrm_render_minor 0\n"})
    put(tmp_path, {f"{topology}/1/properties": "cpu_cores_count 0\ngfx_target_version 110000\ndrm_render_minor 128\n"})
    put(tmp_path, {"dev/kfd": "", "opt/rocm/lib/libamdhip64.so.6": ""})
    icds = "usr/share/vulkan/icd.d"
    put(tmp_path, {f"{icds}/radeon_icd.x86_64.json": '{"ICD": {"library_path": "libvulkan_radeon.so"}}\n'})
    put(
        tmp_path,
        {f"{icds}/intel_icd.x86_64.json": '{\n "ICD": {\n  "library_path": "/usr/lib/libvulkan_intel.so"\n }\n}'},
    )
    put(tmp_path, {"etc/vulkan/icd.d/nvidia_icd.json": '{"ICD": {"library_path" : "libGLX_nvidia.so.0"}}'})
    lines = [f"\t{name} (libc6,x86-64) => /usr/lib/{name}" for name in ("libvulkan.so.1", "libvulkan_radeon.so")]
    put(tmp_path, {"list": "\n".join(lines) + "\n"})
    put(tmp_path, {"bin/ldconfig": f"#!/bin/sh\ncat {tmp_path}/list\n"}, 0o755)
    found = _run(tmp_path).graphics
    group = subprocess.run(
        ["stat", "-c", "%G", tmp_path / "dev/kfd"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == Graphics(
        (replace(RX, group=group), Card("renderD129", "intel", "Intel GPU 56a0", "", "absent", "")),
        (
            replace(ANV, works=False),
            RADEON,
            replace(NVIDIA_ICD, works=False),
        ),
        "yes",
        group,
        frozenset({"libvulkan.so.1", "libamdhip64.so.6"}),
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_the_script_sees_what_the_user_may_not_open(tmp_path: Path) -> None:
    put(tmp_path, {"sys/class/drm/renderD128/device/vendor": "0x8086\n"})
    put(tmp_path, {"dev/dri/renderD128": "", "dev/kfd": ""}, 0o000)
    found = _run(tmp_path).graphics
    assert (found.cards[0].access, found.kfd) == ("no", "no")


def test_a_node_without_any_of_it_has_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    put(tmp_path, {"bin/ldconfig": "#!/bin/sh\nexit 1\n"}, 0o755)
    assert _run(tmp_path).graphics == graphics.NONE
