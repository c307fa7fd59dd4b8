"""Device, dtype, processes: what is chosen, and what is refused in words."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
import torch

from sat_models import runtime
from sat_models.errors import ConfigError, ZooError


def test_the_cpu_runs_in_fp32_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.choose_device() == torch.device("cpu")
    assert runtime.choose_dtype("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_runs_in_bf16_where_it_has_it(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: torch.dtype) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert runtime.choose_dtype("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("given", ["auto", "cuda"])
def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert runtime.choose_device(given) == torch.device("cuda", 2)
    assert runtime.choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"'cuda:4' was asked for, but this machine has 4 GPU\(s\), numbered from 0"):
        runtime.choose_device("cuda:4")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """torchrun started 2 processes on a machine with 2 GPUs; what is asked of torch."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("current", device)))
    monkeypatch.setattr(runtime.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(runtime.dist, "init_process_group", lambda kind, **given: calls.append((kind, given)))
    monkeypatch.setattr(runtime.dist, "get_backend", lambda: calls[-1][0])
    monkeypatch.setattr(runtime.atexit, "register", lambda action: None)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    return calls


def test_gpus_wait_long_for_each_other(launched: list[tuple[Any, ...]]) -> None:
    gpu = torch.device("cuda", 1)
    runtime.init_distributed(gpu)
    assert launched == [("current", gpu), ("nccl", {"init_method": "env://", "timeout": timedelta(hours=2)})]
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    del launched[:]
    runtime.init_distributed("cpu")
    assert launched == [("gloo", {"init_method": "env://"})]


def test_one_process_per_gpu(launched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"3 processes were started on this machine, but it has 2 GPU\(s\)"):
        runtime.init_distributed("cuda:0")
    runtime.init_distributed("cpu")


def test_a_second_model_takes_its_gpu_in_the_same_group(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(runtime.dist, "is_initialized", lambda: True)
    runtime.init_distributed("cuda:1")
    runtime.init_distributed()
    assert current == [torch.device("cuda", 1)]


def test_the_device_of_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert runtime.current_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert runtime.current_device() == torch.device("cuda", 1)


def test_what_is_no_device_or_dtype_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'gpu' is not a device: use auto, cpu, cuda, cuda:N or mps"):
        runtime.choose_device("gpu")
    with pytest.raises(ConfigError, match="torch sees no GPU here; use --device cpu or auto"):
        runtime.choose_device("cuda:0")
    with pytest.raises(ConfigError, match="dtype 'int3' is unknown; use auto, float32, fp32, bfloat16"):
        runtime.choose_dtype("int3", torch.device("cpu"))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_dtypes_by_name(name: str, dtype: torch.dtype) -> None:
    assert runtime.choose_dtype(name, torch.device("cpu")) == dtype
    assert runtime.choose_dtype(dtype, torch.device("cpu")) == dtype


def test_one_process_holds_one_split() -> None:
    runtime.init_model_parallel(1)
    runtime.init_model_parallel(1)
    with pytest.raises(ConfigError, match="size 2 was asked for, but this process already runs with 1"):
        runtime.init_model_parallel(2)


@pytest.mark.parametrize("size", [0, 2])
def test_a_split_that_does_not_divide_the_processes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(runtime.mpu, "model_parallel_is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=rf"size {size} does not divide the 1 process\(es\)"):
        runtime.init_model_parallel(size)


def test_alone_everything_stays_here() -> None:
    value = {"any": "object"}
    assert runtime.broadcast_object(value) is value
    assert runtime.gather_errors(None) == [] and runtime.gather_errors("wrong") == ["wrong"]
    assert runtime.in_step(lambda: value) is value


def test_an_error_of_this_process_keeps_its_type() -> None:
    def fail() -> None:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        runtime.in_step(fail)


def test_an_error_of_another_process_is_raised_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "gather_errors", lambda error: ["no such file"])
    with pytest.raises(ZooError, match="another process of this run failed: no such file"):
        runtime.in_step(lambda: 1)


@pytest.mark.parametrize(("rank", "heard"), [(0, ["info", "error"]), (1, ["error"])])
def test_other_ranks_only_say_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, heard: list[str]
) -> None:
    monkeypatch.setattr(runtime, "rank", lambda: rank)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        runtime.setup_logging()
        logging.getLogger("zoo").info("info")
        logging.getLogger("zoo").error("error")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == heard


def test_an_apple_gpu_is_taken_when_asked_for_and_said_to_be_untested(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.choose_device("mps") == torch.device("mps")
    assert "nobody has tested this zoo on Apple's GPUs" in caplog.text
    assert runtime.choose_dtype("auto", torch.device("mps")) == torch.float16
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="'mps' serves one process, and this run has 2"):
        runtime.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no Apple GPU; use --device cpu"):
        runtime.choose_device("mps")
