"""Two machines, each a network namespace of this one, fine-tune together through the documented launch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from finetune_runs import ENVIRONMENT, ROOT, SCRIPTS, losses

from sat_models.checkpoint.find import find_checkpoint
from sat_models.training.store import CheckpointStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need the program 'ip' (iproute2)"),
]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29511"  # inside a namespace nobody else has it


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[list[tuple[str, str]]]:
    """(namespace, network interface) of two machines on one cable."""
    names = [(f"node{number}-{os.getpid()}", f"ve{number}-{os.getpid()}") for number in (0, 1)]
    with ExitStack() as stack:
        for namespace, _ in names:
            _ip("netns", "add", namespace)
            stack.callback(subprocess.run, ["ip", "netns", "delete", namespace], capture_output=True)
        _ip("link", "add", names[0][1], "type", "veth", "peer", "name", names[1][1])
        for (namespace, interface), address in zip(names, ADDRESSES, strict=True):
            _ip("link", "set", interface, "netns", namespace)
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", interface)
            for device in (interface, "lo"):
                _ip("-n", namespace, "link", "set", device, "up")
        yield names


def _start(machine: tuple[str, str], number: int, save_path: Path, log: Path, size: int) -> subprocess.Popen:
    namespace, interface = machine
    environment = {
        **ENVIRONMENT, "NNODES": "2", "NODE_RANK": str(number), "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": interface,
    }  # fmt: skip
    arguments = [
        "1",
        size,
        log.parent,
        "cogvlm-tiny",
        "base",
        "128",
        "4",
        ROOT / "examples",
        "4",
        "2",
        "0",
        save_path,
        "2",
    ]
    command = ["ip", "netns", "exec", namespace, "bash", SCRIPTS / "finetune_official.sh", *arguments, "expert"]
    command += ["--device", "cpu", "--workers", "0", "--log_interval", "1"]
    with log.open("w") as file:
        return subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )


@pytest.mark.parametrize("size", [1, 2])
def test_two_machines_train_and_save(machines, tmp_path, size):
    """`size` processes share a model: with 1 the machines share the data, with 2 the weights."""
    save_path, logs = tmp_path / "out", [tmp_path / f"{number}.log" for number in (0, 1)]
    running = [_start(machine, n, save_path, logs[n], size) for n, machine in enumerate(machines)]
    try:
        codes = [process.wait(timeout=900) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    assert list(losses(save_path)) == [1, 2, 3, 4]
    store = CheckpointStore(save_path)
    assert store.steps() == [2, 4] and (save_path / "latest").read_text() == "4"
    for step in store.steps():
        store.verify(step)
    ranks = [name for name in json.loads((save_path / "4" / "manifest.json").read_text())["files"] if "rank" in name]
    assert any("1" in Path(name).stem for name in ranks), "the second machine's state is not in the checkpoint"
    assert find_checkpoint(save_path / "merged").read()
