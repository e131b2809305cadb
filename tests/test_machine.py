"""Facts about machines, read from the files of machines laid out in a temporary folder, and from this one."""

import os
import sys

import pytest

from halfbyte.runtime import machine

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")


def lay_out(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def cpu_topology(places):
    """Files of CPUs whose (package, core) numbers are `places`, in order."""
    return {
        f"sys/devices/system/cpu/cpu{i}/topology/{name}": f"{value}\n"
        for i, place in enumerate(places)
        for name, value in zip(("physical_package_id", "core_id"), place, strict=True)
    }


@linux_only
def test_hyper_threads_of_a_core_count_once(tmp_path):
    two_sockets = [(0, 0), (0, 1), (1, 0), (1, 1)] * 2  # CPUs 4..7 are the siblings of 0..3
    root = lay_out(tmp_path, cpu_topology(two_sockets))
    assert machine.physical_cores(root=root) == 4
    assert machine.physical_cores(frozenset({0, 4, 1}), root) == 2


@linux_only
def test_cores_without_topology_are_the_usable_cpus(tmp_path):
    assert machine.physical_cores(frozenset({2, 5, 7}), tmp_path) == 3


@linux_only
@pytest.mark.parametrize(
    ("mounts", "group", "files", "quota"),
    [
        pytest.param("31 24 0:27 / {m} rw - cgroup2 cgroup2 rw\n", "0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 1.5),
        pytest.param("31 24 0:27 / {m} rw - cgroup2 cgroup2 rw\n", "0::/a/b\n", {"a/b/cpu.max": "max 100000"}, None),
        pytest.param(
            "31 24 0:27 / {m} rw - cgroup2 cgroup2 rw\n",
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"},
            2.0,
            id="the tighter limit above holds",
        ),
        pytest.param(
            "31 24 0:27 /docker/9f {m} rw - cgroup2 cgroup2 rw\n",
            "0::/docker/9f\n",
            {"cpu.max": "300000 100000"},
            3.0,
            id="a container sees its own group as the mount's root",
        ),
        pytest.param(
            "31 24 0:27 /docker/9f {m} rw - cgroup2 cgroup2 rw\n",
            "0::/docker/9fff\n",
            {"cpu.max": "300000 100000", "ff/cpu.max": "100000 100000"},
            3.0,
            id="a longer name is another group",
        ),
        pytest.param(
            "33 31 0:29 / {m} rw - cgroup cgroup rw,cpu,cpuacct\n",
            "4:memory:/m\n3:cpu,cpuacct:/job\n",
            {"job/cpu.cfs_quota_us": "250000", "job/cpu.cfs_period_us": "100000"},
            2.5,
            id="v1",
        ),
        pytest.param(
            "33 31 0:29 / {m} rw - cgroup cgroup rw,cpu\n",
            "3:cpu:/job\n",
            {"job/cpu.cfs_quota_us": "-1", "job/cpu.cfs_period_us": "100000"},
            None,
            id="v1 without a limit",
        ),
        pytest.param("", "", {}, None, id="no cgroups"),
    ],
)
def test_cgroup_quota(tmp_path, mounts, group, files, quota):
    root = lay_out(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    mountinfo = mounts.format(m="/sys/fs/cgroup")
    lay_out(root, {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": group})
    assert machine.cpu_quota(root) == quota


@linux_only
def test_cpu_name_caches_and_memory(tmp_path):
    root = lay_out(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU 9\n",
            "proc/meminfo": "MemTotal: 2048 kB\nMemAvailable:  1024 kB\n",
            "sys/devices/system/cpu/cpu0/cache/index0/size": "48K\n",
            "sys/devices/system/cpu/cpu0/cache/index3/size": "32M\n",
        },
    )
    assert machine.cpu_name(root) == "Fast CPU 9"
    assert machine.last_level_cache(root) == 32 << 20
    assert machine.available_memory(root) == 1 << 20
    assert machine.last_level_cache(root / "nothing") is None
    assert machine.available_memory(root / "nothing") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process")
def test_default_threads_keep_to_the_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_this_machine_is_consistent():
    found = machine.this_machine()
    assert 1 <= found.default_threads <= found.usable_cores <= found.logical_cores
    assert found.cpu
    assert found.cpu_quota is None or found.cpu_quota > 0
