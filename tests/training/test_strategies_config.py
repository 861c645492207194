"""What can't work is refused by name, with the reason and the way out, before torch or a GPU is touched."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from training.config.strategies import CAPABILITIES, StrategyConfig, StrategyError, Wanted, check_strategy
from training.errors import ConfigError

REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"name": "colossalai_zero3"}, {}, "no strategy 'colossalai_zero3'", "colossalai_zero2"),
    ({"name": "colossalai_gemini"}, {"lora": True}, "LoRA", "use colossalai_zero2 or ddp"),
    ({"name": "colossalai_gemini_auto"}, {"lora": True}, "LoRA", "use colossalai_zero2 or ddp"),
    ({"name": "colossalai_3d", "tp": 2}, {"lora": True, "world_size": 2}, "LoRA", "use colossalai_zero2 or ddp"),
    ({"name": "colossalai_gemini"}, {"precision": "fp32"}, "precision fp32", "bf16 or fp16"),
    ({"name": "ddp"}, {"precision": "int8"}, "no precision 'int8'", "bf16, fp16, fp32"),
    ({"name": "naive"}, {"world_size": 2}, "one process", "use ddp"),
    ({"name": "colossalai_3d", "tp": 2}, {"world_size": 3}, "can't divide 3", "lower tp or pp"),
    ({"name": "colossalai_3d", "pp": 2, "zero": 2}, {"world_size": 2}, "zero 0 or 1", "set zero: 1"),
    ({"name": "colossalai_3d", "sp": "split_gather"}, {}, "tensor-parallel ranks", "set tp to 2"),
    ({"name": "colossalai_3d", "pp": 2}, {"stage": "rm", "world_size": 2}, "two rows", "pp: 1"),
    ({"name": "colossalai_3d", "tp": 2}, {"stage": "dpo", "world_size": 2}, "whole head", "use colossalai_zero2"),
    ({"name": "colossalai_3d"}, {"stage": "ppo"}, "whole layers", "use ddp"),
    ({"name": "ddp", "tp": 2}, {"world_size": 2}, "belongs to colossalai_3d", "name: colossalai_3d"),
    ({"name": "ddp", "offload_optimizer": 1.0}, {}, "belong to colossalai_gemini", "colossalai_zero2_cpu"),
    ({"name": "colossalai_gemini", "offload_optimizer": 1.5}, {}, "is 1.5", "from 0 to 1"),
    ({"name": "colossalai_gemini", "offload_parameters": 0.5}, {}, "needs offload_optimizer", "1.0"),
    ({"name": "colossalai_zero2"}, {"device": "cpu"}, "need a GPU", "naive or ddp"),
    ({"name": "ddp"}, {"device": "cpu", "precision": "fp16"}, "fp16 needs a GPU", "bf16 or fp32"),
    ({"name": "ddp", "bucket_mb": 0}, {}, "bucket_mb is 0", "above 0"),
]


@pytest.mark.parametrize(("config", "wanted", "reason", "way_out"), REFUSED)
def test_refused_with_reason_and_way_out(config: Any, wanted: Any, reason: str, way_out: str) -> None:
    with pytest.raises(StrategyError) as refused:
        check_strategy(StrategyConfig(**config), Wanted(**wanted))
    message = str(refused.value)
    assert config["name"] in message and reason in message and way_out in message
    assert isinstance(refused.value, ConfigError) and refused.value.exit_code == 64


@pytest.mark.parametrize("name", CAPABILITIES)
def test_every_strategy_runs_alone_on_a_gpu_in_bf16(name: str) -> None:
    assert check_strategy(StrategyConfig(name=name), Wanted(device="cuda")) is CAPABILITIES[name]


def test_a_name_is_a_configuration() -> None:
    assert StrategyConfig(**StrategyConfig.shorthand("ddp")) == StrategyConfig(name="ddp")


def test_checking_needs_no_torch() -> None:
    code = "import sys, training.config.strategies; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_colossalai_without_a_gpu_is_refused_and_leaves_no_process_group() -> None:
    code = (
        "from training.config.strategies import StrategyConfig\n"
        "from training.strategies.select import open_strategy\n"
        "import torch.distributed as dist\n"
        "try:\n    open_strategy(StrategyConfig(name='colossalai_gemini'), precision='bf16')\n"
        "except ValueError as error:\n    print(error, dist.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "need a GPU and none is visible; use naive or ddp" in done.stdout
    assert "False" in done.stdout
